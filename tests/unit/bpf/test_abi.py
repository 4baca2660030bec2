"""Structs that programs and Python share, as the compiler laid them out (BTF of the built objects)."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import balancer.ebpf.abi
import packetbridge.ebpf.abi
from bpf import generate
from common.bpf import abi
from common.bpf.layout import U8, U32, Layout
from common.bpf.objects import object_path

OBJECTS = {"balancer": balancer.ebpf.abi, "packetbridge": packetbridge.ebpf.abi}
LAYOUTS = [*abi.SHARED, *(layout for module in OBJECTS.values() for layout in module.STRUCTS)]


@pytest.fixture(scope="module", params=OBJECTS)
def types(request: pytest.FixtureRequest) -> tuple[str, dict[int, dict[str, Any]]]:
    if shutil.which("bpftool") is None:
        pytest.fail("bpftool is missing: run `make setup`")
    command = ["bpftool", "-j", "btf", "dump", "file", str(object_path(request.param))]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return request.param, {each["id"]: each for each in json.loads(shown)["types"]}


def structs_of(types: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in types.values() if each["kind"] == "STRUCT"}


def fields(layout: Layout[Any]) -> Iterator[tuple[str, int, int]]:
    """Name, offset in bits, size in bytes."""
    for field in layout.fields:
        yield field.name, field.at * 8, field.type.size


def size_of(types: dict[int, dict[str, Any]], number: int) -> int:
    kind = types[number]
    if kind["kind"] == "ARRAY":
        return int(kind["nr_elems"]) * size_of(types, kind["type_id"])
    return int(kind["size"]) if "size" in kind else size_of(types, kind["type_id"])


def test_structs_lie_as_python_packs_them(types: tuple[str, dict[int, dict[str, Any]]]) -> None:
    name, known = types
    structs = structs_of(known)
    compared = 0
    for layout in (*abi.SHARED, *OBJECTS[name].STRUCTS):
        if layout.name not in structs:  # no map and no function of this object has it
            continue
        compiled = structs[layout.name]
        members = [
            (each["name"], each["bits_offset"], size_of(known, each["type_id"]))
            for each in compiled["members"]
        ]
        assert (compiled["size"], members) == (layout.size, list(fields(layout)))
        compared += 1
    assert compared >= len(OBJECTS[name].STRUCTS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_what_is_packed_is_unpacked(layout: Layout[Any]) -> None:
    data = bytes(range(1, layout.size + 1))
    assert layout.pack(layout.unpack(data)) == data


class Holed(NamedTuple):
    small: U8
    large: U32


def test_a_struct_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holed\.large at 1 is not aligned"):
        Layout(Holed, "holed")


def test_numbers_are_those_of_the_header() -> None:
    made = generate.shared_header()
    assert "#define REACH 16777216\n" in made
    assert "[4][8] = {{0, 2, 1, 0, 0, 0, 3, 0}, " in made
