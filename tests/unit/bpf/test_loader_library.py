"""What of the loader can be seen without a kernel: structures, errors, what an import costs."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from common.bpf import libbpf, objects, run
from common.bpf.errors import BpfError
from common.net.errors import HostError

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "bpf_object_open_opts": libbpf.ObjectOpenOptions,
    "bpf_tc_hook": libbpf.TcHook,
    "bpf_tc_opts": libbpf.TcOptions,
    "bpf_test_run_opts": libbpf.TestRunOptions,
    "bpf_map_info": libbpf.MapInfo,
    "bpf_prog_info": libbpf.ProgramInfo,
    "bpf_link_info": libbpf.LinkInfo,
    "btf_type": libbpf.BtfType,
    "btf_var_secinfo": libbpf.BtfVariable,
}
OTHER_NAMES = {
    "sizes": "jited_prog_len",
    "instructions": "jited_prog_insns",
    "ifindex of bpf_link_info": "xdp.ifindex",
}
WITHOUT_NAME = {"removed", "padding"}
LATER_THAN_THE_HEADERS = {"attach_type of bpf_link_info"}


def static_asserts() -> list[str]:
    lines = []
    for name, structure in STRUCTURES.items():
        for field in structure._fields_:
            if field[0] in WITHOUT_NAME or f"{field[0]} of {name}" in LATER_THAN_THE_HEADERS:
                continue
            member = OTHER_NAMES.get(f"{field[0]} of {name}", OTHER_NAMES.get(field[0], field[0]))
            offset = getattr(structure, field[0]).offset
            lines.append(f'_Static_assert(offsetof(struct {name}, {member}) == {offset}, "{name}.{member}");')
    options = [name for name, structure in STRUCTURES.items() if issubclass(structure, libbpf.Options)]
    lines += [
        f'_Static_assert(sizeof(struct {name}) == {ctypes.sizeof(STRUCTURES[name])}, "{name}");'
        for name in options
    ]
    lines.append(f'_Static_assert(sizeof(struct __sk_buff) == {run._SK_BUFF.size}, "__sk_buff");')
    return lines


def test_structures_are_laid_out_as_in_the_headers(tmp_path: Path) -> None:
    headers = ("stddef.h", "linux/btf.h", "bpf/bpf.h", "bpf/libbpf.h")
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*(f"#include <{name}>" for name in headers), *static_asserts(), ""]))
    subprocess.run(["clang", "-fsyntax-only", source], check=True, timeout=20)


def test_imports_load_no_library() -> None:
    code = (
        "import common.bpf.attach, common.bpf.maps, common.bpf.objects, common.bpf.pins, common.bpf.run\n"
        "assert 'libbpf' not in open('/proc/self/maps').read()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_LIBRARY", "libbpf.so.0.none")
    libbpf.library.cache_clear()
    with pytest.raises(BpfError, match=r"cannot load libbpf\.so\.0\.none: install the package libbpf1"):
        libbpf.library()


def test_object_that_was_not_built_is_an_error_of_the_host_that_says_what_to_do() -> None:
    with pytest.raises(HostError, match="no eBPF program nothing: install the packages clang libbpf-dev"):
        objects.object_path("nothing")


def test_file_that_is_no_object_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.bpf.o"
    path.write_text("this is no object")
    with pytest.raises(BpfError, match=r"^the eBPF program text cannot be opened: .*") as raised:
        objects.BpfObject(path)
    assert "\n" not in str(raised.value)
