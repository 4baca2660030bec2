"""Requests from the lab's hosts, and where NGINX is asked without a balancer."""

import hashlib
from pathlib import Path

from lab import Host
from tests.lab.conversation import VIP

NODE1 = "http://192.168.33.30"
NODE2 = "http://192.168.33.31"
NODE3 = "http://192.168.33.32"
PATIENCE_SECONDS = 60


def curl(host: Host, *arguments: str) -> str:
    """What curl writes. Raises LabError where it fails."""
    limit = ["--max-time", str(PATIENCE_SECONDS)]
    return host.run(["curl", "-sS", *limit, *arguments], timeout=PATIENCE_SECONDS + 10).stdout


def md5_of_download(host: Host, url: str, *arguments: str) -> str:
    target = host.directory / "download"
    curl(host, *arguments, "-o", str(target), url)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def md5_of_echo(host: Host, sent: Path, *arguments: str) -> str:
    """Of what the VIP's /echo returns when the file is posted to it."""
    return md5_of_download(host, f"{VIP}/echo", "--data-binary", f"@{sent}", *arguments)
