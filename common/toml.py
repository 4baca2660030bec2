"""Configuration files: TOML, joined with a command's options, and decoded into `msgspec.Struct` types.

What is allowed stands in the types alone: `msgspec.Meta` bounds and describes each key (its `extra` may say
in words what is "allowed" or the "default"), `TextType` says how text becomes a value. The messages of
`ConfigError` and the tables of the documentation are made from the same types.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from common.config import (
    OFF,
    ConfigError,
    WrittenEndpoint,
    WrittenListener,
    parse_address,
    parse_endpoint,
    parse_listener,
)

Place = tuple[str | int, ...]
"""Keys, and indices from 0 on, that lead to a value from the top of a file."""
Schema = TypeVar("Schema", bound=msgspec.Struct)

_STEP = re.compile(r"\.([^.`\[\]]+)|\[([0-9]+)\]")
_MAX_SHOWN = 60
_MAX_BITS = 256


class TextType(NamedTuple):
    """A type whose values are written as text."""

    allowed: str
    """As it completes "is not ..."."""
    parse: Callable[[str], object]
    """Raises `ConfigError`, which shows the text and says what is allowed."""


def _parse_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ConfigError(f"{text!r} is not a file name")
    return Path(text)


TEXT_TYPES: Mapping[type, TextType] = {
    IPv4Address: TextType('"ADDR"', parse_address),
    WrittenEndpoint: TextType('"ADDR[:PORT]"', lambda text: WrittenEndpoint(parse_endpoint(text))),
    WrittenListener: TextType(f'"ADDR:PORT" or "{OFF}"', lambda text: WrittenListener(parse_listener(text))),
    Path: TextType("a file name", _parse_path),
}


class Given(NamedTuple):
    """An option that stands for a value."""

    option: str
    text: str


class Document:
    """A file's tables, and the options that have changed them."""

    def __init__(self, path: Path | None, tables: dict[str, Any]) -> None:
        """``path`` is None where there is no file."""
        self.path = path
        self.tables = tables
        self._given: dict[Place, Given] = {}

    def put(self, place: Place, value: object, option: str, text: str) -> None:
        """Write an option's value over what the file says; ``option`` and ``text`` are for messages.

        A table on the way that is missing is made, a list is not. `ConfigError` where something else is.
        """
        at: Any = self.tables
        for depth, step in enumerate(place[:-1]):
            at = at[step] if isinstance(step, int) else at.setdefault(step, {})
            wanted = list if isinstance(place[depth + 1], int) else dict
            if not isinstance(at, wanted):
                raise self.refuse(place[: depth + 1], "a list" if wanted is list else "a table")
        at[place[-1]] = value
        self._given[place] = Given(option, text)

    def array(self, key: str) -> list[dict[str, Any]]:
        """The tables of an array of them at the top, none where there is no such key. `ConfigError`."""
        tables = self.tables.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self.refuse((key,), "a list of tables")
        return tables

    def decode(self, schema: type[Schema], texts: Mapping[type, TextType]) -> Schema:
        """The whole document; ``texts`` are types beyond `TEXT_TYPES`. Raises `ConfigError`."""
        known = {**TEXT_TYPES, **texts}

        def from_text(kind: type, value: object) -> object:
            if not isinstance(value, str):
                raise ValueError
            try:
                return known[kind].parse(value)
            except ConfigError:
                raise ValueError from None

        try:
            return msgspec.convert(self.tables, schema, dec_hook=from_text)
        except msgspec.ValidationError as error:
            at = str(error).rpartition(" - at `$")[2] if " - at `$" in str(error) else ""
            place = tuple(int(index) if index else key for key, index in _STEP.findall(at))
            raise self._refusal(place, _type_at(struct_type(schema), place), known) from None

    def error(self, place: Place, complaint: str) -> ConfigError:
        """`ConfigError` that names file, table and key, or else the option, before ``complaint``."""
        given = self._given.get(place)
        where = [given.option] if given else [str(self.path or ""), self._named(place)]
        return ConfigError(": ".join(filter(None, [*where, complaint])))

    def refuse(self, place: Place, allowed: str) -> ConfigError:
        """`error` for a single value: "... KEY VALUE is not ``allowed``"."""
        given = self._given.get(place)
        if given:
            return ConfigError(f"{given.option} {given.text!r} is not {allowed}")
        *table, key = place
        name = f"entry {key + 1}" if isinstance(key, int) else key
        return self.error(tuple(table), f"{name} {_shown(self._value(place))} is not {allowed}")

    def require_distinct(self, place: Place, whose: str, what: str, values: Sequence[object]) -> None:
        """`ConfigError` "two ``whose`` have ``what`` ..." where a value stands twice."""
        for value in values:
            if values.count(value) > 1:
                raise self.error(place, f"two {whose} have {what} {value}: each needs its own")

    def _refusal(self, place: Place, kind: inspect.Type, texts: Mapping[type, TextType]) -> ConfigError:
        value = self._value(place)
        suited = _suited(kind, value)
        if isinstance(suited, inspect.StructType) and isinstance(value, dict):
            keys = {field.encode_name: field for field in suited.fields}
            for name in value:
                if name not in keys:
                    return self.error(place, f"unknown key {_shown(name)}: allowed are {', '.join(keys)}")
            for name, field in keys.items():
                if field.required and name not in value:
                    return self.error(place, f"{name} is missing: it is {allowed(field.type, texts)}")
        if isinstance(suited, inspect.CustomType) and isinstance(value, str) and len(value) <= _MAX_SHOWN:
            try:
                texts[suited.cls].parse(value)
            except ConfigError as error:
                return self.error(place, str(error))
        return self.refuse(place, allowed(kind, texts)) if place else self.error((), "not a configuration")

    def _value(self, place: Place) -> Any:
        value: Any = self.tables
        for step in place:
            value = value[step]
        return value

    def _named(self, place: Place) -> str:
        """Like `pool "www": node "a": weight`: tables of an array go by their name, or number from 1 on."""
        parts: list[str] = []
        for depth, step in enumerate(place, 1):
            if isinstance(step, str):
                parts.append(step)
                continue
            entry = self._value(place[:depth])
            if not isinstance(entry, dict):
                parts.append(f"entry {step + 1}")
                continue
            name = entry.get("name")
            parts[-1] += f" {_shown(name) if isinstance(name, str) else step + 1}"
        return ": ".join(parts)


def read(path: Path, *, must_exist: bool = True) -> Document:
    """`ConfigError` where ``path`` cannot be read or is no TOML."""
    try:
        return Document(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{path}: this file does not exist") from None
        return Document(None, {})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not TOML: it is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, tables within tables without end
        raise ConfigError(f"{path}: not TOML that can be used: a number or a nesting without end") from None


def allowed(kind: inspect.Type, texts: Mapping[type, TextType]) -> str:
    """What a value of this type may be, as it completes "is not ..."."""
    return " or ".join(dict.fromkeys(_alternatives(kind, texts)))


def _alternatives(kind: inspect.Type, texts: Mapping[type, TextType]) -> Iterator[str]:
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            if extra and "allowed" in extra:
                yield extra["allowed"]
            else:
                yield from _alternatives(inner, texts)
        case inspect.UnionType(types=types):
            for one in types:
                yield from _alternatives(one, texts)
        case inspect.LiteralType(values=values):
            yield _one_of(values)
        case inspect.EnumType(cls=cls):
            yield _one_of(tuple(member.value for member in cls))
        case inspect.IntType() | inspect.FloatType():
            yield _numbers(kind)
        case inspect.CustomType(cls=cls):
            yield texts[cls].allowed
        case inspect.StrType():
            yield "text" if not kind.min_length else "text that is not empty"
        case inspect.ListType() | inspect.VarTupleType():
            what = "tables" if isinstance(kind.item_type, inspect.StructType) else "values"
            yield f"a list of {what}" + " that is not empty" * bool(kind.min_length)
        case inspect.BoolType() | inspect.StructType():
            yield "a table" if isinstance(kind, inspect.StructType) else "true or false"


def _one_of(values: tuple[object, ...]) -> str:
    return " or ".join(_shown(value) for value in values)


def _numbers(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.gt is not None:
        return f"a number above {kind.gt:g} and up to {kind.le:g}"
    if kind.ge is None or kind.le is None:
        return "a number"
    return f"a number from {kind.ge:.15g} to {kind.le:.15g}"


def _shown(value: object) -> str:
    """On one line, and not too long."""
    if isinstance(value, dict):
        return "(a table)"
    if isinstance(value, list):
        return "(a list)" if value else "[]"
    if isinstance(value, Enum):
        return _shown(value.value)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"{value:#x}"[:_MAX_SHOWN] + "..."  # str() refuses thousands of digits
    text = json.dumps(value) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


@cache
def struct_type(schema: type[msgspec.Struct]) -> inspect.StructType:
    kind = inspect.type_info(schema)
    assert isinstance(kind, inspect.StructType)
    return kind


def bare(kind: inspect.Type) -> inspect.Type:
    """Without what `msgspec.Meta` says beside its bounds."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def _type_at(kind: inspect.Type, place: Place) -> inspect.Type:
    for step in place:
        kind = _suited(kind, {} if isinstance(step, str) else [])
        if isinstance(kind, inspect.StructType):
            kind = next(field.type for field in kind.fields if field.encode_name == step)
        elif isinstance(kind, (inspect.ListType, inspect.VarTupleType)):
            kind = kind.item_type
    return kind


def _suited(kind: inspect.Type, value: object) -> inspect.Type:
    """The part of ``kind`` that is for tables, lists or text, if ``value`` is one; else all of it."""
    whole = bare(kind)
    for one in whole.types if isinstance(whole, inspect.UnionType) else (whole,):
        inner = bare(one)
        if isinstance(value, dict) and isinstance(inner, inspect.StructType):
            return inner
        if isinstance(value, list) and isinstance(inner, (inspect.ListType, inspect.VarTupleType)):
            return inner
        if isinstance(value, str) and isinstance(inner, inspect.CustomType):
            return inner
    return kind
