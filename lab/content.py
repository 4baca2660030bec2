"""The files that the lab's web servers have: pseudo-random bytes, the same in every lab."""

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

KIB = 1 << 10
MIB = 1 << 20
FILES: Mapping[str, int] = MappingProxyType(
    {"1k": KIB, "4k": 4 * KIB, "64k": 64 * KIB, "1m": MIB, "100m": 100 * MIB}
)
SEED = "l3dsr lab content"


class Content:
    """One directory that all servers of a lab have as their root; a file's name is its URL's path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._md5: dict[str, str] = {}

    def write(self) -> None:
        self.directory.mkdir()
        for name, size in FILES.items():
            generator = random.Random(f"{SEED} {name}")
            with self.path(name).open("wb") as file:
                for start in range(0, size, MIB):
                    file.write(generator.randbytes(min(MIB, size - start)))

    def path(self, name: str) -> Path:
        return self.directory / name

    def size(self, name: str) -> int:
        """In bytes."""
        return FILES[name]

    def md5(self, name: str) -> str:
        """In hexadecimal, as md5sum prints it."""
        if name not in self._md5:
            with self.path(name).open("rb") as file:
                self._md5[name] = hashlib.file_digest(file, "md5").hexdigest()
        return self._md5[name]
