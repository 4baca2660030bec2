"""`make install` on machines, from this checkout and without the network."""

import shutil
import subprocess
from pathlib import Path

from tests.lab import wheels
from tests.lab.booted import CHECKOUT, Machine

INSTALL_SECONDS = 180.0
_LEFT = (
    "etc/group",
    "etc/gshadow",
    "etc/l3dsr/balancer.toml.example",
    "etc/l3dsr/packetbridge.toml.example",
    "opt/l3dsr",
    "usr/local/bin/balancer",
    "usr/local/bin/l3dsr",
    "usr/local/bin/packetbridge",
    "usr/local/lib/systemd",
)


class Installation:
    """The first machine is installed; what that has left, but for its key, is carried to the others.

    ``directory`` is for wheels and what is carried.
    """

    def __init__(self, directory: Path) -> None:
        self._wheels = directory / "wheels"
        self._carried = directory / "installed.tar"

    def install(self, machine: Machine) -> None:
        if not self._carried.exists():
            self.make_install(machine)
            self._tar(machine, "--create", *_LEFT)
        else:
            self._tar(machine, "--extract")
            machine.do(f"{CHECKOUT}/setup/make-key /etc/l3dsr/handoff.key && systemctl daemon-reload")

    def make_install(self, machine: Machine) -> str:
        """The real thing, from the machine's own view of the checkout. What it prints."""
        if not self._wheels.exists():
            self._wheels.mkdir()
            wheels.pack("l3dsr", self._wheels)
        shutil.copytree(self._wheels, machine.path("/run/wheels"), dirs_exist_ok=True)
        settings = wheels.environment(Path("/run/wheels")).items()
        environment = " ".join(f"{name}={value}" for name, value in settings)
        return machine.do(f"cd {CHECKOUT} && env {environment} make install", INSTALL_SECONDS)

    def _tar(self, machine: Machine, *arguments: str) -> None:
        argv = ["tar", f"--file={self._carried}", f"--directory={machine.path('/')}", *arguments]
        subprocess.run(argv, check=True)
