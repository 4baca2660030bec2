"""What runs on the lab's client. These scripts need nothing but the standard library (wrk's need wrk)."""

from pathlib import Path


def script(name: str) -> Path:
    return Path(__file__).with_name(name)
