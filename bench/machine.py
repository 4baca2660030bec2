"""What the figures were measured on."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

VERSIONS = {
    "NGINX": ["nginx", "-v"],
    "HAProxy": ["haproxy", "-v"],
    "nftables": ["nft", "--version"],
    "wrk": ["wrk", "-v"],
}
PROGRAM_SECONDS = 5
BYTES_PER_GIB = 1 << 30


def describe() -> dict[str, str | int]:
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / BYTES_PER_GIB
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "CPU": model[1] if model else platform.machine(),
        "kind": "virtual machine"
        if re.search(r"^flags\s*:.*\bhypervisor\b", cpu, re.MULTILINE)
        else "hardware",
        "cores": os.cpu_count() or 1,
        "memory": f"{memory:.0f} GiB",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        **{name: _version(argv) for name, argv in VERSIONS.items() if shutil.which(argv[0])},
    }


def _version(argv: list[str]) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "of unknown version"
