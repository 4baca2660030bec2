"""Tables of a configuration file's keys, made from the types that decode it."""

import json
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import inspect

from common.options import described
from common.toml import TEXT_TYPES, TextType, allowed, bare, struct_type

_HEAD = "| key | value | default | meaning |\n|---|---|---|---|"


def key_tables(schema: type[msgspec.Struct], texts: Mapping[type, TextType]) -> str:
    """One table for the top of the file, and one for each table in it, under its TOML heading."""
    return "\n\n".join(_tables("", struct_type(schema), {**TEXT_TYPES, **texts}))


def _tables(name: str, kind: inspect.StructType, texts: Mapping[type, TextType]) -> Iterator[str]:
    rows = [_row(field, texts) for field in kind.fields if not _is_table(field.type)]
    heading = f"### `{name}`\n\n" if name else ""
    yield "\n".join([heading + _HEAD, *rows])
    for field in kind.fields:
        inner = _struct_in(field.type)
        if inner is not None:
            path = f"{name.strip('[]')}.{field.encode_name}".lstrip(".")
            is_array = isinstance(bare(field.type), inspect.VarTupleType)
            yield from _tables(f"[[{path}]]" if is_array else f"[{path}]", inner, texts)


def _row(field: inspect.Field, texts: Mapping[type, TextType]) -> str:
    meaning, in_words = described(field)
    default = "required" if field.required else in_words or f"`{_written(field.default)}`"
    return f"| `{field.encode_name}` | {allowed(field.type, texts)} | {default} | {meaning} |"


def _written(value: object) -> str:
    """As TOML has it."""
    if isinstance(value, float):
        return f"{value:.15g}"
    return json.dumps(value if isinstance(value, (bool, int)) else str(getattr(value, "value", value)))


def _is_table(kind: inspect.Type) -> bool:
    """Whether nothing but tables may stand there."""
    inner = bare(kind)
    if isinstance(inner, inspect.VarTupleType):
        inner = bare(inner.item_type)
    return isinstance(inner, inspect.StructType)


def _struct_in(kind: inspect.Type) -> inspect.StructType | None:
    inner = bare(kind)
    if isinstance(inner, inspect.VarTupleType):
        inner = bare(inner.item_type)
    for one in inner.types if isinstance(inner, inspect.UnionType) else (inner,):
        if isinstance(bare(one), inspect.StructType):
            found = bare(one)
            assert isinstance(found, inspect.StructType)
            return found
    return None
