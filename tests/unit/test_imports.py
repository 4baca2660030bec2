"""The import rules: the layer table of docs/architecture.md, as data.

A module may import its own layer, the layers that its rule names, the standard library (the pure layers
without whatever reaches for a clock, a socket, a log or chance), and the rule's third-party packages. All
imports count, those within functions and under TYPE_CHECKING too. Whatever no rule names is forbidden, so
that lab, bench, tests, docs and scapy need no mention.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("balancer", "common", "l3dsr", "packetbridge")

IMPURE = frozenset(
    {
        "asyncio",
        "datetime",
        "fcntl",
        "importlib",
        "logging",
        "multiprocessing",
        "os",
        "random",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "socketserver",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "uuid",
    }
)
TABLES = ("common.tables", "common.deadlines", "common.limit", "common.counters")
CORE = ("common.tcp", "common.wire", "common.hashing", "common.reports", *TABLES)
CONFIGURATION = ("common.config", "common.toml", "common.options", "common.vip_map", "common.log")


@dataclass(frozen=True, slots=True)
class Layer:
    """`modules` are module names; each stands for everything below it, except what another layer names."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...]
    third_party: frozenset[str]
    pure: bool


def _layer(*modules: str, may_import: tuple[str, ...], third_party: str = "", pure: bool = False) -> Layer:
    return Layer(modules, may_import, frozenset(third_party.split()), pure)


LAYERS = (
    _layer("common.wire", may_import=(), pure=True),
    _layer(*TABLES, may_import=(), pure=True),
    _layer("common.tcp", may_import=("common.wire", *TABLES), pure=True),
    _layer("common.hashing", may_import=(), third_party="xxhash", pure=True),
    _layer("common.reports", may_import=(), third_party="msgspec", pure=True),
    _layer(*CONFIGURATION, may_import=CORE, third_party="msgspec structlog"),
    _layer("common.net", may_import=("common.wire", "common.config"), third_party="pyroute2 trio"),
    _layer("common.threads", "common.sparingly", may_import=(), third_party="trio"),
    _layer("common.keyring", may_import=(*CORE, "common.config"), third_party="siphash24"),
    _layer(
        "common.bpf",
        may_import=(*CORE, "common.net", "common.config", "common.keyring", "common.threads"),
        third_party="pyroute2 trio",
    ),
    _layer(
        *("common.dataplane", "common.daemon", "common.engine", "common.notify", "common.problems"),
        may_import=(*CORE, *CONFIGURATION, "common.net", "common.keyring", "common.bpf"),
        third_party="trio",
    ),
    _layer(
        *("common.commands", "common.control", "common.control_client", "common.console"),
        *("common.http", "common.web", "common.page", "common.metrics", "common.outlets", "common.release"),
        may_import=(*CORE, *CONFIGURATION, "common.net", "common.engine", "common.threads"),
        third_party="h11 msgspec prometheus_client trio",
    ),
    _layer("balancer.core", may_import=(*CORE, "common.config"), third_party="msgspec", pure=True),
    _layer("packetbridge.core", may_import=CORE, pure=True),
    _layer("balancer", may_import=("common", "balancer.core"), third_party="msgspec trio"),
    _layer("packetbridge", may_import=("common", "packetbridge.core"), third_party="msgspec trio"),
    _layer(
        "l3dsr",
        may_import=("common", "balancer.config", "packetbridge.config"),
        third_party="msgspec pyroute2 scapy trio",
    ),
    _layer("common", may_import=()),
)


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> Layer | None:
    """The layer that names `module` or the nearest package around it."""
    named = [(len(name), layer) for layer in LAYERS for name in layer.modules if _is_within(module, name)]
    return max(named, key=lambda found: found[0])[1] if named else None


def imported_names(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names that `source` imports, relative ones resolved against `module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = node.level - 1 if is_package else node.level
            base = module.split(".")[: len(module.split(".")) - above] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `source` that the layer of `module` does not allow."""
    layer = layer_of(module)
    assert layer is not None, f"{module} stands in no layer"

    def is_allowed(name: str) -> bool:
        top = name.partition(".")[0]
        if top in PRODUCT:
            return layer_of(name) is layer or any(_is_within(name, allowed) for allowed in layer.may_import)
        if top in sys.stdlib_module_names:
            return not (layer.pure and top in IMPURE)
        return top in layer.third_party

    return [name for name in imported_names(source, module, is_package=is_package) if not is_allowed(name)]


def product_modules() -> Iterator[tuple[str, Path]]:
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.modules[0])
def test_layer_imports_only_what_its_rule_allows(layer: Layer) -> None:
    found = [(module, path) for module, path in product_modules() if layer_of(module) is layer]
    assert found, "a rule without modules is out of date"
    broken = {
        module: forbidden
        for module, path in found
        if (forbidden := violations(path.read_text(), module, is_package=path.name == "__init__.py"))
    }
    assert broken == {}


def test_common_itself_holds_no_module_without_a_layer() -> None:
    in_no_row = [module for module, _ in product_modules() if layer_of(module) is LAYERS[-1]]
    assert in_no_row == ["common"]


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("common.wire.tcp", "import socket", ["socket"]),
        ("common.wire.tcp", "def f():\n    import time", ["time"]),
        ("common.wire.tcp", "from os import urandom", ["os.urandom"]),
        ("common.wire.tcp", "import xxhash", ["xxhash"]),
        ("common.wire.tcp", "from common.tables import Table", ["common.tables.Table"]),
        ("common.wire.tcp", "from ..tables import Table", ["common.tables.Table"]),
        ("common.wire.tcp", "from .. import tcp", ["common.tcp"]),
        ("common.tables", "import random", ["random"]),
        ("common.tables", "from common.wire import seq", ["common.wire.seq"]),
        ("common.tcp.splice", "from common.hashing import maglev", ["common.hashing.maglev"]),
        ("common.tcp.splice", "import logging", ["logging"]),
        ("common.hashing.maglev", "import numpy", ["numpy"]),
        ("common.net.tun", "from common.tcp import splice", ["common.tcp.splice"]),
        ("common.net.tun", "import balancer", ["balancer"]),
        ("common.config", "from common.net import routes", ["common.net.routes"]),
        ("common.dataplane", "import packetbridge.core", ["packetbridge.core"]),
        ("common.keyring", "from tests import conftest", ["tests.conftest"]),
        ("balancer.core.flows", "import trio", ["trio"]),
        ("balancer.core.flows", "import time", ["time"]),
        ("balancer.core.flows", "from balancer.daemon import run", ["balancer.daemon.run"]),
        ("balancer.core.flows", "from .. import daemon", ["balancer.daemon"]),
        ("balancer.core.flows", "from common.net import tun", ["common.net.tun"]),
        ("balancer.daemon", "from packetbridge import core", ["packetbridge.core"]),
        ("balancer.daemon", "import scapy.all", ["scapy.all"]),
        ("balancer.cli", "from lab import topology", ["lab.topology"]),
        ("balancer.cli", "import bench, docs.generate", ["bench", "docs.generate"]),
        ("packetbridge.core.flows", "import os.path", ["os.path"]),
        (
            "packetbridge.core.flows",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import socket",
            ["socket"],
        ),
        ("packetbridge.daemon", "import balancer.core.flows", ["balancer.core.flows"]),
        ("common", "from common.wire import seq", ["common.wire.seq"]),
    ],
)
def test_planted_violation_is_found(module: str, source: str, forbidden: list[str]) -> None:
    assert violations(source, module) == forbidden


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("common.wire.tcp", "import struct\nfrom common.wire import seq\nfrom . import checksum"),
        ("common.tcp.splice", "from common.wire.seq import add\nfrom common.tables import Table"),
        ("common.net.tun", "import fcntl, os, socket\nimport pyroute2\nfrom common.config import Config"),
        ("balancer.core.flows", "from common.tcp import splice\nfrom .preamble import Preamble"),
        ("balancer.daemon", "import logging, time\nimport trio\nfrom balancer.core import flows"),
        ("packetbridge.cli", "import argparse\nfrom common.net import host\nfrom .daemon import run"),
    ],
)
def test_import_down_the_layers_is_allowed(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_import_of_a_package_counts_from_the_package_itself() -> None:
    assert violations("from .tun import Tun", "common.net", is_package=True) == []
    assert violations("from ..tcp import splice", "common.net", is_package=True) == ["common.tcp.splice"]


def test_rules_and_documented_layer_table_name_the_same_modules() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    first_cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    path = re.compile(r"`([a-z0-9_/]+/(?:[a-z_]+\.py)?)`")
    documented = {name for cell in first_cells for name in path.findall(cell)}
    ruled = {name for layer in LAYERS[:-1] for name in layer.modules}
    assert {name.removesuffix("/").removesuffix(".py").replace("/", ".") for name in documented} == ruled


def test_third_party_packages_of_the_rules_are_the_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~ \[]", requirement)[0] for requirement in project["dependencies"]}
    assert declared == frozenset().union(*(layer.third_party for layer in LAYERS))
