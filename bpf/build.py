"""Compiles the eBPF programs: bpf/NAME.bpf.c becomes common/bpf/built/NAME.bpf.o where that is out of date.

Run by hatchling when the package is built, by the make targets (`python bpf/build.py`) and by pytest. Only
UAPI headers and libbpf's own are used, so that one object fits all kernels. Where clang or the headers are
missing, the package is built without eBPF programs and the daemons have their raw data plane only.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "bpf"
INCLUDE = SOURCES / "include"
BUILT = ROOT / "common" / "bpf" / "built"
PACKAGES = "clang libbpf-dev linux-libc-dev"
"""Debian packages with all that is needed here."""

_SYSTEM = Path("/usr/include")
_NEEDED = ("bpf/bpf_helpers.h", "linux/bpf.h")
_FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


class Variant(NamedTuple):
    """One more object from a source that has an object of its own name already."""

    name: str
    source: str
    defines: tuple[str, ...]


VARIANTS: tuple[Variant, ...] = (Variant("packetbridge_adopt", "packetbridge.bpf.c", ("ADOPT=1",)),)


class CompileError(Exception):
    """What the compiler says, in full."""


def reason_against() -> str | None:
    """Why nothing can be compiled here, in one line, or None."""
    if shutil.which("clang") is None:
        missing = "clang"
    else:
        missing = next((f"{_SYSTEM / name}" for name in _NEEDED if not (_SYSTEM / name).exists()), "")
    if not missing:
        return None
    return f"no eBPF programs are built, {missing} is missing: install the packages {PACKAGES}"


def build(source: Path, target: Path, defines: Sequence[str] = ()) -> None:
    """Compile; ``defines`` as NAME or NAME=VALUE. Nothing is at ``target`` after a `CompileError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as directory:
        draft = Path(directory, target.name)
        begin = time.time_ns()
        command = ["clang", *_FLAGS, *(f"-D{define}" for define in defines), f"-I{INCLUDE}"]
        machine = _SYSTEM / (sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu")
        command += [f"-isystem{machine}", "-c", str(source), "-o", str(draft)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            target.unlink(missing_ok=True)
            raise CompileError(done.stderr.strip())
        if (strip := shutil.which("llvm-strip")) is not None:
            subprocess.run([strip, "-g", draft], check=True, timeout=60)  # DWARF goes, BTF stays
        _give_to_owner(draft)
        os.utime(draft, ns=(begin, begin))  # a source that was changed meanwhile is newer
        draft.replace(target)


def build_all() -> None:
    """Bring all objects up to date. `CompileError` of the first that fails, when all others are built."""
    wanted = [Variant(source.name.removesuffix(".bpf.c"), source.name, ()) for source in _sources()]
    wanted += VARIANTS
    failures = []
    for name, source, defines in wanted:
        target = BUILT / f"{name}.bpf.o"
        if _is_current(target, SOURCES / source):
            continue
        try:
            build(SOURCES / source, target, defines)
        except CompileError as error:
            failures.append(error)
    if BUILT.exists():
        _give_to_owner(BUILT)
        for left in {*BUILT.glob("*.bpf.o")} - {BUILT / f"{variant.name}.bpf.o" for variant in wanted}:
            left.unlink()
    if failures:
        raise failures[0]


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.bpf.c"))


def _is_current(target: Path, source: Path) -> bool:
    if not target.exists():
        return False
    made_from = (source, Path(__file__), *INCLUDE.rglob("*.h"))
    return all(path.stat().st_mtime_ns < target.stat().st_mtime_ns for path in made_from)


def _give_to_owner(path: Path) -> None:
    """What root builds must not be in the way of the checkout's owner."""
    if os.geteuid() == 0:
        owner = ROOT.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def get_build_hook() -> type[Any]:
    """Asked by hatchling, which alone has the interface."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # noqa: PLC0415

    class BpfBuildHook(BuildHookInterface[Any]):
        def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
            if (reason := reason_against()) is not None:
                self.app.display_warning(reason)
                return
            build_all()
            build_data["artifacts"].append("/common/bpf/built/*.bpf.o")

    return BpfBuildHook


def main() -> int:
    if (reason := reason_against()) is not None:
        print(reason, file=sys.stderr)
        return 0
    try:
        build_all()
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
