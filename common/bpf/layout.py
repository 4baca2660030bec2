"""Structs that BPF programs and Python share: a NamedTuple is the one source of both.

Each field is annotated with one of the types below, which give its C type and its size. Numbers stand in
host byte order, as in any C struct; addresses and ports of the wire are `bytes` in network order.
There is no hidden padding: a struct whose fields are not aligned by themselves is refused.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from common.wire.buffer import Buffer


@dataclass(frozen=True, slots=True)
class CType:
    name: str
    """In C."""
    code: str
    """Of module `struct`."""
    size: int
    alignment: int
    count: int = 0
    """Elements of an array; 0 where it is none."""


U8 = Annotated[int, CType("__u8", "B", 1, 1)]
S8 = Annotated[int, CType("__s8", "b", 1, 1)]
U16 = Annotated[int, CType("__u16", "H", 2, 2)]
U32 = Annotated[int, CType("__u32", "I", 4, 4)]
U64 = Annotated[int, CType("__u64", "Q", 8, 8)]
S64 = Annotated[int, CType("__s64", "q", 8, 8)]
Be16 = Annotated[bytes, CType("__be16", "2s", 2, 2)]
Be32 = Annotated[bytes, CType("__be32", "4s", 4, 4)]
Pad1 = Annotated[bytes, CType("__u8", "1s", 1, 1, 1)]
Pad2 = Annotated[bytes, CType("__u8", "2s", 2, 1, 2)]
Pad3 = Annotated[bytes, CType("__u8", "3s", 3, 1, 3)]
"""Always zero: keys are compared byte by byte."""

Row = TypeVar("Row", bound=tuple[Any, ...])


class Field(NamedTuple):
    name: str
    type: "CType | Layout[Any]"
    at: int
    """Bytes from the struct's beginning."""


class Layout(Generic[Row]):
    """How one NamedTuple class lies in memory."""

    def __init__(self, row: type[Row], name: str) -> None:
        """``name`` is that of the C struct. ValueError where a field is not aligned."""
        self.row = row
        self.name = name
        self.fields = _fields(row)
        self.alignment: int = max(field.type.alignment for field in self.fields)
        last = self.fields[-1]
        self.size: int = last.at + last.type.size
        for field in self.fields:
            if field.at % field.type.alignment:
                raise ValueError(f"{name}.{field.name} at {field.at} is not aligned")
        if self.size % self.alignment:
            raise ValueError(f"{name} has {self.size} bytes, no multiple of {self.alignment}")
        self._struct = struct.Struct("=" + "".join(_codes(self.fields)))

    def at(self, name: str) -> int:
        """Bytes from the struct's beginning to a field."""
        return next(field.at for field in self.fields if field.name == name)

    def pack(self, row: Row) -> bytes:
        """`size` bytes. struct.error where a number does not fit."""
        return self._struct.pack(*_flat(row))

    def unpack(self, data: Buffer) -> Row:
        numbers = list(self._struct.unpack(data))
        numbers.reverse()
        return self.consume(numbers)

    def consume(self, numbers: list[Any]) -> Row:
        """The row of the last of ``numbers``, which are in reverse order; they are taken away."""
        values = [
            field.type.consume(numbers) if isinstance(field.type, Layout) else numbers.pop()
            for field in self.fields
        ]
        return self.row(*values)


def _fields(row: type[Any]) -> tuple[Field, ...]:
    at = 0
    fields = []
    for name, hint in get_type_hints(row, include_extras=True).items():
        kind: CType | Layout[Any]
        if get_origin(hint) is Annotated:
            kind = next(each for each in get_args(hint)[1:] if isinstance(each, CType | Layout))
        else:
            raise ValueError(f"{row.__name__}.{name} has no C type")
        fields.append(Field(name, kind, at))
        at += kind.size
    return tuple(fields)


def _codes(fields: Sequence[Field]) -> list[str]:
    codes = []
    for field in fields:
        codes += _codes(field.type.fields) if isinstance(field.type, Layout) else [field.type.code]
    return codes


def _flat(row: Sequence[Any]) -> list[Any]:
    values: list[Any] = []
    for value in row:
        if isinstance(value, tuple):
            values += _flat(value)
        else:
            values.append(value)
    return values
