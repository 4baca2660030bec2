"""docs/operations.md, tried word by word: its files are written, its commands run, its outputs compared.

Each machine has a systemd of its own, and a real NGINX. A fence's info string says what it is. `toml
HOST:PATH`, `nft HOST:PATH` and `nginx node1:PATH` are files; node2's NGINX has the same with its own name and
address. `console` has commands behind prompts, each with the output that is expected of it; those of `console
install` are typed in a checkout. `console elsewhere` is for a machine that is not in the lab.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import Lab, LabError
from tests.lab.booted import CHECKOUT, Machine, boot
from tests.lab.installation import Installation
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
SECONDS = 130.0
"""What a unit may take to start."""
HOSTS = ("client", "balancer", "node1", "node2")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"(?P<host>\w+)# (?P<line>.+)")
_REPEATED = ("l3dsr status", "l3dsr doctor", "curl ")
"""Commands that change nothing: what they are to show may come to be a little later."""
_TOKENS = {
    r"\s*\.\.\.\s*": ".*?",
    r"engine ebpf": "engine (?:ebpf|raw)",
    r"\d+\.\d+\.\d+\.\d+": None,
    r"(?<![A-Za-z])\d+(?:[.,]\d+)*": r"[\d.,]+",
    r"\s+": r"\s+",
}
"""What in an expected output is not literal, and what it stands for; None: it is, like an address."""
_TOKEN = re.compile("|".join(f"({token})" for token in _TOKENS))


class Block(NamedTuple):
    line: int
    """Of the document."""
    kind: str
    detail: str
    body: str


class Typed(NamedTuple):
    host: str
    line: str
    expected: str


def blocks() -> Iterator[Block]:
    text = DOCUMENT.read_text()
    for found in _FENCE.finditer(text):
        kind, _, detail = found["info"].partition(" ")
        body = "".join(line.removeprefix(found["indent"]) for line in found["body"].splitlines(keepends=True))
        yield Block(text.count("\n", 0, found.start()) + 1, kind, detail, body)


def typed(body: str) -> Iterator[Typed]:
    """The commands of a console, each with what is shown below it."""
    current: Typed | None = None
    for line in body.splitlines(keepends=True):
        if prompt := _PROMPT.match(line):
            if current:
                yield current
            current = Typed(prompt["host"], prompt["line"], "")
        else:
            assert current, f"output before the first command: {line}"
            current = current._replace(expected=current.expected + line)
    if current:
        yield current


def pattern(expected: str) -> re.Pattern[str]:
    expected = expected.strip()
    meanings = list(_TOKENS.values())
    parts, at = [], 0
    for token in _TOKEN.finditer(expected):
        meaning = meanings[(token.lastindex or 1) - 1]
        parts += [re.escape(expected[at : token.start()]), meaning or re.escape(token[0])]
        at = token.end()
    return re.compile("".join([*parts, re.escape(expected[at:])]), re.DOTALL)


class Walk:
    """One walk through the document."""

    def __init__(self, lab: Lab, machines: dict[str, Machine], installation: Installation) -> None:
        self._lab = lab
        self._machines = machines
        self._installation = installation

    def take(self, block: Block) -> None:
        if block.kind == "console":
            for each in typed(block.body):
                self._type(block.detail, each)
            return
        host, _, path = block.detail.partition(":")
        text = block.body if block.kind != "toml" else f'engine = "{self._lab.engine}"\n{block.body}'
        self._machines[host].path(path).write_text(text)
        if block.kind == "nginx":
            self._machines["node2"].path(path).write_text(_of_node2(text))

    def _type(self, detail: str, each: Typed) -> None:
        assert detail in ("", "install", "elsewhere")
        machine = self._machines.get(each.host)
        if machine is None:
            assert detail == "elsewhere"
        elif detail == "install":
            self._install(machine, each.line)
        elif each.line.startswith("scp "):
            self._copy(machine, each.line)
        else:
            self._run(machine, each)

    def _install(self, machine: Machine, line: str) -> None:
        if line == "make install":
            self._installation.install(machine)
        elif line == "make uninstall":
            machine.do(f"cd {CHECKOUT} && make uninstall")
        else:
            assert line == "git pull"

    def _copy(self, machine: Machine, line: str) -> None:
        """`scp FILE root@ADDRESS:FILE`: an existing file keeps its mode."""
        _, source, target = line.split()
        address, _, path = target.removeprefix("root@").partition(":")
        addresses = {str(self._lab.topology.link(name).addresses[0]): name for name in self._machines}
        self._machines[addresses[address]].path(path).write_bytes(machine.path(source).read_bytes())

    def _run(self, machine: Machine, each: Typed) -> None:
        wanted = pattern(each.expected)
        said = ""

        def is_as_written() -> bool:
            nonlocal said
            done = machine.run(each.line, SECONDS)
            said = f"{done.stdout}{done.stderr}"
            return done.returncode == 0 and wanted.fullmatch(said.strip()) is not None

        try:
            if each.line.startswith(_REPEATED):
                await_that(is_as_written)
            else:
                assert is_as_written()
        except (AssertionError, LabError):
            pytest.fail(f"{each.host}# {each.line}\nshould say\n{each.expected}\nand says\n{said}")


def _of_node2(text: str) -> str:
    return text.replace("node1", "node2").replace("192.168.33.30", "192.168.33.31")


@pytest.fixture(scope="module")
def walk(engine: str, installation: Installation) -> Iterator[Walk]:
    """Machines with the addresses that they have before anybody reads the document."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(engine=engine, vip_local=False))
        machines = {name: stack.enter_context(boot(lab.hosts[name])) for name in HOSTS}
        for name in ("node1", "node2"):
            lab.nginx[name].stop()
            node = lab.topology.node(name)
            for address in (node.bridge, node.backend):
                machines[name].do(f"ip address del {address}/32 dev eth0")
        yield Walk(lab, machines, installation)
        for machine in machines.values():
            assert "Traceback (most recent call last)" not in machine.do("journalctl --output=cat")


def test_what_the_operations_page_says_is_so(walk: Walk) -> None:
    for block in blocks():
        try:
            walk.take(block)
        except BaseException as error:
            error.add_note(f"{DOCUMENT.name}, line {block.line}")
            raise
