"""What both commands' options have in common: each stands for a key of the configuration file."""

import argparse
import grp
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec
from msgspec import inspect

from common.config import (
    DEFAULT_CONFIG_DIR,
    DEFAULT_CONTROL_GROUP,
    MAX_SOCKET_PATH,
    ConfigError,
    HostConfig,
    HostKeys,
)
from common.toml import Document, Place, bare, read, struct_type

_MAX_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Setting:
    """An option that stands for one key, a field of ``schema``, whose description is its help."""

    option: str
    place: Place
    schema: type[msgspec.Struct]
    metavar: str | None = None
    """None: the values allowed."""
    default: str | None = None
    """As the help shows it; None: the field's own."""

    @property
    def field(self) -> inspect.Field:
        fields = struct_type(self.schema).fields
        return next(field for field in fields if field.encode_name == self.place[-1])

    @property
    def is_flag(self) -> bool:
        return isinstance(bare(self.field.type), inspect.BoolType)

    @property
    def destination(self) -> str:
        return self.option.removeprefix("--").replace("-", "_")

    def value(self, text: str) -> object:
        """What TOML would make of it, if the key's type is a number; text that is none stays what it is."""
        kind = bare(self.field.type)
        for one in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
            number = {inspect.IntType: int, inspect.FloatType: float}.get(type(bare(one)))
            if number is not None and text.isascii() and len(text) <= _MAX_DIGITS:
                try:
                    return number(text)
                except ValueError:
                    return text
        return text


class Parser(argparse.ArgumentParser):
    """Explains every option with its default; an error is one line and exit code 2."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=name, description=description, formatter_class=_formatter, allow_abbrev=False)
        config_file = DEFAULT_CONFIG_DIR / f"{name}.toml"
        self.explain("--config", f"{config_file}, if it exists", "a configuration file", metavar="FILE")
        self.explain(
            "--check", "no", "say whether file, options and key file are right, and exit", is_flag=True
        )
        self.explain(
            "--remove", "no", "take away what a run with --keep-flows left at work, and exit", is_flag=True
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def explain(
        self,
        option: str,
        default: str,
        text: str,
        *,
        is_flag: bool = False,
        group: argparse._ActionsContainer | None = None,
        **settings: Any,
    ) -> None:
        """Add an option that, if it is not given, is not among the parsed ones."""
        settings["help"] = f"{text} (default: {default})".replace("%", "%%")
        action = "store_true" if is_flag else "store"
        (group or self).add_argument(option, **{"action": action, "default": argparse.SUPPRESS, **settings})

    def add_setting(self, setting: Setting, group: argparse._ActionsContainer | None = None) -> None:
        field = setting.field
        text, default = described(field)
        settings: dict[str, Any] = {}
        if not setting.is_flag:
            settings["metavar"] = setting.metavar or "{" + ",".join(_choices(field.type)) + "}"
        default = setting.default or default or _shown(field.default)
        self.explain(setting.option, default, text, is_flag=setting.is_flag, group=group, **settings)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """The same text on every terminal, so that documents can quote it."""
    return argparse.HelpFormatter(prog, max_help_position=30, width=100)


def described(field: inspect.Field) -> tuple[str, str | None]:
    """A key's description, and its default where that is given in words."""
    kind, text, default = field.type, "", None
    while isinstance(kind, inspect.Metadata):
        text = (kind.extra_json_schema or {}).get("description", text)
        default = (kind.extra or {}).get("default", default)
        kind = kind.type
    return text, default


def _shown(value: object) -> str:
    value = getattr(value, "value", value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _choices(kind: inspect.Type) -> Sequence[str]:
    kind = bare(kind)
    if isinstance(kind, inspect.EnumType):
        return [member.value for member in kind.cls]
    assert isinstance(kind, inspect.LiteralType)
    return [str(value) for value in kind.values]


def _host_settings(keys: type[HostKeys]) -> dict[str, Setting]:
    metavars = {
        "engine": None,
        "keep-flows": None,
        "state-dir": "DIR",
        "log-level": None,
        "log-format": None,
        "control": "PATH",
        "control-group": "GROUP",
        "metrics": "ADDR:PORT|off",
        "channel-port": "PORT",
        "key-file": "FILE",
        "insecure": None,
    }
    return {name: Setting(f"--{name}", (name,), keys, metavar) for name, metavar in metavars.items()}


def add_host_options(parser: Parser, keys: type[HostKeys]) -> None:
    settings = _host_settings(keys)
    secrecy = parser.add_mutually_exclusive_group()
    for name in ("key-file", "insecure"):
        parser.add_setting(settings.pop(name), secrecy)
    for setting in settings.values():
        parser.add_setting(setting)


def put_host_options(document: Document, options: argparse.Namespace, keys: type[HostKeys]) -> None:
    """Write those that were given into the document."""
    if hasattr(options, "insecure"):
        document.tables.pop("key-file", None)
    if hasattr(options, "key_file"):
        document.tables.pop("insecure", None)
    put_settings(document, options, _host_settings(keys).values())


def put_settings(document: Document, options: argparse.Namespace, settings: Iterable[Setting]) -> None:
    """Write those that were given into the document."""
    for setting in settings:
        given = getattr(options, setting.destination, None)
        if given is not None:
            value = given if setting.is_flag else setting.value(given)
            document.put(setting.place, value, setting.option, str(given))


def host_config(document: Document, keys: HostKeys, daemon: str) -> HostConfig:
    """``keys`` are those of ``document``, decoded."""
    if keys.insecure and "key-file" in document.tables:
        raise document.error((), "insecure = true and key-file exclude each other")
    if keys.control_group != DEFAULT_CONTROL_GROUP and not _group_exists(keys.control_group):
        raise document.refuse(("control-group",), "a group of this host")
    control = keys.control or keys.state_dir / f"{daemon}.sock"
    size = len(os.fsencode(control))
    if size > MAX_SOCKET_PATH:
        raise document.error(
            ("control" if keys.control else "state-dir",),
            f"the control socket's path may have {MAX_SOCKET_PATH} bytes, and not {size}",
        )
    return HostConfig(
        engine=keys.engine,
        keep_flows=keys.keep_flows,
        state_dir=keys.state_dir,
        key_file=keys.key_file,
        insecure=keys.insecure,
        log_level=keys.log_level,
        log_format=keys.log_format,
        control=control,
        control_group=keys.control_group,
        metrics=keys.metrics.value,
        channel_port=keys.channel_port,
    )


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except (KeyError, ValueError):
        return False
    return True


def read_document(daemon: str, options: argparse.Namespace) -> Document:
    """The configuration file: the one of --config, or the default one if it exists."""
    if hasattr(options, "config"):
        return read(Path(options.config))
    return read(DEFAULT_CONFIG_DIR / f"{daemon}.toml", must_exist=False)


class Loaded(Protocol):
    @property
    def path(self) -> Path | None: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def is_of_file(self) -> bool:
        """Whether the file names what is served; else options and their defaults do."""


Config = TypeVar("Config", bound=Loaded)


def parse_command(
    parser: Parser,
    arguments: Sequence[str] | None,
    load: Callable[[argparse.Namespace], Config],
    check: Callable[[Config], str],
) -> Config:
    """A command's configuration, validated as a whole.

    Exits with 0 after --help and, with the line that ``check`` makes, after --check; with 2 and one line on
    standard error if something is wrong.
    """
    options = parser.parse_args(arguments)
    try:
        config = load(options)
        said = check(config) if hasattr(options, "check") else None
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if said is not None:
        for warning in config.warnings:
            print(f"{parser.prog}: {warning}", file=sys.stderr)
        print(f"{config.path or parser.prog}: {said}")
        parser.exit(0)
    return config


def refuse_loss(old: Loaded, new: Loaded, table: str) -> None:
    """`ConfigError` where a reload would put the defaults in the place of what the file's ``table`` named.

    Such a file is one that somebody is about to write, or that found no room on the disk.
    """
    if old.is_of_file and not new.is_of_file:
        what = "this file does not exist" if new.path is None else f"there is no [[{table}]]"
        raise ConfigError(f"{old.path}: {what} any more")


def restart_only_of_host(old: HostConfig, new: HostConfig) -> list[str]:
    """The keys that differ and that a running daemon does not change."""
    fields = (
        "engine",
        "keep_flows",
        "state_dir",
        "key_file",
        "insecure",
        "log_format",
        "control",
        "control_group",
        "metrics",
        "channel_port",
    )
    return [name.replace("_", "-") for name in fields if getattr(old, name) != getattr(new, name)]
