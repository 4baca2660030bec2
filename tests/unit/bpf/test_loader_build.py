"""Compilation of the programs, in a scratch tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import build
from tests.bpf.programs import compiled

SOURCE = '#include "topic/number.h"\nint number = NUMBER;\n'


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One program, one header."""
    include = tmp_path / "bpf" / "include"
    (include / "topic").mkdir(parents=True)
    (include / "topic" / "number.h").write_text("#define NUMBER 1\n")
    (tmp_path / "bpf" / "one.bpf.c").write_text(SOURCE)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "bpf")
    monkeypatch.setattr(build, "INCLUDE", include)
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    monkeypatch.setattr(build, "VARIANTS", ())
    return tmp_path


def section(path: Path, name: str) -> bytes:
    """Of an ELF object, by llvm-objcopy."""
    out = path.with_suffix(".section")
    subprocess.run(
        ["llvm-objcopy", f"--dump-section={name}={out}", path, "/dev/null"], check=True, timeout=20
    )
    return out.read_bytes()


def made_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def test_program_is_built_once_and_again_when_its_source_or_a_header_changes(tree: Path) -> None:
    build.build_all()
    target = tree / "built" / "one.bpf.o"
    assert section(target, ".data") == b"\x01\0\0\0"
    first = made_at(target)
    build.build_all()
    assert made_at(target) == first

    (tree / "bpf" / "include" / "topic" / "number.h").write_text("#define NUMBER 2\n")
    build.build_all()
    assert section(target, ".data") == b"\x02\0\0\0"

    (tree / "bpf" / "one.bpf.c").write_text("int number = 3;\n")
    build.build_all()
    assert section(target, ".data") == b"\x03\0\0\0"


def test_variant_is_an_object_of_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "bpf" / "one.bpf.c").write_text("#ifndef N\n#define N 4\n#endif\nint number = N;\n")
    monkeypatch.setattr(build, "VARIANTS", (build.Variant("one_more", "one.bpf.c", ("N=5",)),))
    build.build_all()
    assert section(tree / "built" / "one.bpf.o", ".data") == b"\x04\0\0\0"
    assert section(tree / "built" / "one_more.bpf.o", ".data") == b"\x05\0\0\0"


def test_source_that_does_not_compile_leaves_no_old_object_and_the_others_are_built(tree: Path) -> None:
    build.build_all()
    (tree / "bpf" / "one.bpf.c").write_text("int number = NOWHERE;\n")
    (tree / "bpf" / "two.bpf.c").write_text("int number = 6;\n")
    with pytest.raises(build.CompileError, match="NOWHERE"):
        build.build_all()
    assert os.listdir(tree / "built") == ["two.bpf.o"]


def test_warning_is_an_error(tree: Path) -> None:
    (tree / "bpf" / "one.bpf.c").write_text("int f(int unused) { return 0; }\n")
    with pytest.raises(build.CompileError, match="unused parameter"):
        build.build_all()


def test_object_without_a_source_is_removed(tree: Path) -> None:
    build.build_all()
    (tree / "bpf" / "one.bpf.c").rename(tree / "bpf" / "other.bpf.c")
    build.build_all()
    assert os.listdir(tree / "built") == ["other.bpf.o"]


def test_object_has_type_information_and_no_debugger_s() -> None:
    named = subprocess.run(
        ["llvm-objdump", "-h", compiled()], check=True, capture_output=True, text=True, timeout=20
    ).stdout
    assert ".BTF.ext" in named
    assert ".debug" not in named


def test_without_clang_the_reason_names_the_packages(tmp_path: Path) -> None:
    program = Path(build.__file__)
    done = subprocess.run(
        [sys.executable, program],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == (
        "no eBPF programs are built, clang is missing: install the packages clang libbpf-dev linux-libc-dev\n"
    )


def test_without_headers_the_reason_names_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_SYSTEM", tmp_path)
    reason = build.reason_against()
    assert reason is not None
    assert f"{tmp_path}/bpf/bpf_helpers.h is missing" in reason
