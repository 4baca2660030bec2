"""Server and client of the control socket, joined, and strangers that keep to no protocol."""

import json
import logging
import os
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import trio

from common import control
from common.commands import BALANCER, COMMON, Arguments, Flows, OfNode, Weight
from common.config import ConfigError
from common.control import CLIENTS, REQUEST_SIZE, Command, CommandError, ControlSocket
from common.control_client import ControlError, ask, ask_once
from tests.unit.serving import damaged, said_to, serving

LOGGER = logging.getLogger("control-test")


async def _status(_: Arguments) -> dict[str, str]:
    return {"daemon": "balancer"}


async def _flows(wanted: Flows) -> AsyncGenerator[dict[str, object], None]:
    for number in range(wanted.limit):
        yield {"number": number, "client": wanted.client}


async def _drain(wanted: OfNode) -> str:
    raise CommandError(f"there is no node {wanted.node}: the nodes are node1 and node2")


async def _weight(wanted: Weight) -> int | None:
    return wanted.weight


async def _reload(_: Arguments) -> None:
    raise ConfigError("balancer.toml line 3: vip is missing")


async def _counters(_: Arguments) -> int:
    return 1 // 0


async def _explain(_: Arguments) -> object:
    return object()


async def _channels(_: Arguments) -> AsyncGenerator[str, None]:
    yield "first"
    raise ValueError("second")


COMMANDS = {
    "status": Command(Arguments, _status),
    "flows": Command(Flows, _flows),
    "drain": Command(OfNode, _drain),
    "weight": Command(Weight, _weight),
    "reload": Command(Arguments, _reload),
    "counters": Command(Arguments, _counters),
    "explain": Command(Arguments, _explain),
    "channels": Command(Arguments, _channels),
}


@contextmanager
def _served(path: Path, commands: Mapping[str, Command] = COMMANDS) -> Iterator[None]:
    with closing(ControlSocket(path)) as daemon, serving(lambda: daemon.serve(commands, LOGGER)):
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "daemon.sock"


@pytest.fixture
def served(path: Path) -> Iterator[Path]:
    with _served(path):
        yield path


@contextmanager
def _stranger(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        yield connection


def _all_lines(connection: socket.socket) -> list[object]:
    """What comes until the daemon ends it."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return [json.loads(line) for line in received.splitlines()]


def _error(lines: list[object]) -> str:
    """Of an answer that is an error and nothing else."""
    (line,) = lines
    assert isinstance(line, dict)
    assert list(line) == ["error"]
    return str(line["error"])


def test_answer_is_a_line_for_each_value_and_a_last_one(served: Path) -> None:
    with _stranger(served) as connection:
        connection.sendall(b'{"do":"status"}\n{"do":"flows","limit":2,"client":"10.0.0.1"}\n')
        connection.shutdown(socket.SHUT_WR)
        assert _all_lines(connection) == [
            {"value": {"daemon": "balancer"}},
            {"ok": True},
            {"value": {"number": 0, "client": "10.0.0.1"}},
            {"value": {"number": 1, "client": "10.0.0.1"}},
            {"ok": True},
        ]


def test_client_yields_the_values(served: Path) -> None:
    assert ask_once(served, "status") == {"daemon": "balancer"}
    assert [value["number"] for value in ask(served, "flows", limit=3)] == [0, 1, 2]


def test_null_is_a_value(served: Path) -> None:
    assert list(ask(served, "weight", node="node1", weight=None)) == [None]


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b'{"do": "flow"}', "\"do\" is 'flow', must be one of channels, counters, drain"),
        (b'{"do": 7}', '"do" is 7, must be one of'),
        (b"{}", '"do" is None, must be one of'),
        (b'{"do": "drain"}', "drain: Object missing required field `node`"),
        (b'{"do": "drain", "node": 5}', "drain: Expected `str`, got `int` - at `$.node`"),
        (b'{"do": "drain", "node": ""}', "drain: Expected `str` of length >= 1 - at `$.node`"),
        (b'{"do": "status", "node": "a"}', "status: Object contains unknown field `node`"),
        (b'{"do": "weight", "node": "a", "weight": -1}', "weight: Expected `int` >= 0 - at `$.weight`"),
        (b'{"do": "weight", "node": "a", "weight": 1001}', "weight: Expected `int` <= 1000 - at `$.weight`"),
        (b'{"do": "drain", "node": "a"}', "there is no node a: the nodes are node1 and node2"),
        (b'{"do": "reload"}', "balancer.toml line 3: vip is missing"),
    ],
)
def test_refused_request_gets_a_line_and_the_next_one_its_answer(
    served: Path, request_line: bytes, said: str
) -> None:
    with _stranger(served) as connection:
        connection.sendall(request_line + b'\n{"do": "status"}\n')
        connection.shutdown(socket.SHUT_WR)
        refused, *following = _all_lines(connection)
    assert _error([refused]).startswith(said)
    assert following == [{"value": {"daemon": "balancer"}}, {"ok": True}]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n",
        b"\n",
        b"[1]\n",
        b'{"do": "st\xff"}\n',
        b'{"a":' + b"[" * 60_000 + b"\n",
        b"\0" * 50 + b"\n",
    ],
)
def test_what_is_not_a_request_ends_the_connection_with_a_line(served: Path, rubbish: bytes) -> None:
    with _stranger(served) as connection:
        connection.sendall(rubbish)
        assert _error(_all_lines(connection)).startswith('not a request such as {"do": "status"}: ')
    assert ask_once(served, "status") == {"daemon": "balancer"}


def test_damaged_requests_end_no_more_than_their_connection(
    served: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seeds = [b'{"do": "status"}\n', b'{"do": "flows", "limit": 3, "client": "10.0.0.1"}\n']
    for seed in range(400):
        with _stranger(served) as connection:
            answer = said_to(connection, damaged(seeds, seed))
        lines = [json.loads(line) for line in answer.splitlines()]
        assert all(len(line) == 1 and line.keys() <= {"value", "ok", "error"} for line in lines), seed
    assert caplog.records == []
    assert ask_once(served, "status") == {"daemon": "balancer"}


def test_request_of_the_greatest_size_is_taken_and_a_longer_one_is_not(served: Path) -> None:
    request = b'{"do": "status"' + b" " * (REQUEST_SIZE - len(b'{"do": "status"}')) + b"}"
    with _stranger(served) as connection:
        connection.sendall(request + b"\n")
        connection.shutdown(socket.SHUT_WR)
        assert _all_lines(connection)[-1] == {"ok": True}
    for longer in (b" " + request + b"\n", b" " + request):
        with _stranger(served) as connection:
            connection.sendall(longer)
            assert _error(_all_lines(connection)) == "a request has at most 65536 bytes"


def test_client_that_asks_for_nothing_is_sent_away(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.05)
    with _stranger(served) as connection:
        connection.sendall(b'{"do": "sta')
        assert _error(_all_lines(connection)) == "no request within 0.05 seconds"


def test_client_that_does_not_read_holds_up_only_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "WRITE_SECONDS", 0.5)
    closed_after = threading.Event()
    produced = 0

    async def endless(_: Arguments) -> AsyncGenerator[str, None]:
        nonlocal produced
        try:
            while True:
                produced += 1
                yield "x" * 1000
        finally:
            closed_after.set()

    with _served(path, {**COMMANDS, "flows": Command(Arguments, endless)}), _stranger(path) as deaf:
        deaf.sendall(b'{"do": "flows"}\n')
        for _ in range(5):
            assert ask_once(path, "status", within=30) == {"daemon": "balancer"}
        assert closed_after.wait(60)
        assert produced < 5000, "what is not read is not made"


def test_command_of_a_client_that_left_is_closed(path: Path) -> None:
    closed_after = threading.Event()

    async def endless(_: Arguments) -> AsyncGenerator[int, None]:
        try:
            while True:
                await trio.sleep(0.01)
                yield 1
        finally:
            closed_after.set()

    with _served(path, {"flows": Command(Arguments, endless)}):
        assert next(ask(path, "flows")) == 1
        assert closed_after.wait(60)


def test_the_oldest_client_that_asks_nothing_makes_room_for_a_new_one(served: Path) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(_stranger(served)) for _ in range(CLIENTS)]
        # The last one of them is served, so all are known by now.
        clients[-1].sendall(b'{"do": "status"}\n')
        assert clients[-1].recv(1000)
        assert ask_once(served, "status") == {"daemon": "balancer"}
        assert b"32 clients are connected, and this one keeps the daemon waiting" in clients[0].recv(1000)
        clients[1].sendall(b'{"do": "status"}\n')
        assert clients[1].recv(1000).startswith(b'{"value"')


def test_clients_beyond_the_bound_are_refused_with_a_line_while_all_are_answered(path: Path) -> None:
    at_work = []
    may_end = threading.Event()

    async def slow(_: Arguments) -> None:
        at_work.append(True)
        while not may_end.is_set():  # noqa: ASYNC110 - the test's thread has no event of this loop
            await trio.sleep(0.01)

    with _served(path, {"status": Command(Arguments, slow)}), ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(_stranger(path)).sendall(b'{"do": "status"}\n')
        _eventually(lambda: len(at_work) == CLIENTS)
        with pytest.raises(ControlError, match="32 clients are connected already: try again later"):
            ask_once(path, "status")
        may_end.set()
        _eventually(lambda: ask_once(path, "status") is None)


def _eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(1000):
        try:
            if is_so():
                return
        except ControlError:
            pass
        threading.Event().wait(0.02)
    raise AssertionError("not within twenty seconds")


def test_bug_in_a_command_is_logged_answered_and_survived(
    served: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("counters", "explain"):
        with pytest.raises(ControlError, match=f"{name} failed by a bug: the daemon's log has the details"):
            ask_once(served, name)
    values = ask(served, "channels")
    assert next(values) == "first"
    with pytest.raises(ControlError, match="channels failed by a bug"):
        next(values)
    assert ask_once(served, "status") == {"daemon": "balancer"}
    bugs = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in bugs] == [
        "control: a bug in counters",
        "control: a bug in explain",
        "control: a bug in channels",
    ]
    assert all(record.exc_info for record in bugs)


def test_request_that_changes_something_is_logged_with_who_asked(
    served: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    list(ask(served, "weight", node="node1", weight=3))
    list(ask(served, "status"))
    assert [record.getMessage() for record in caplog.records] == [
        f"control: weight {{'node': 'node1', 'weight': 3}}, asked for by user id {os.getuid()}"
    ]


def test_daemon_that_says_nothing_is_given_up(path: Path) -> None:
    with (
        closing(ControlSocket(path)),
        pytest.raises(ControlError, match=r"the daemon at .* said nothing for 0\.05 seconds"),
    ):
        ask_once(path, "status", within=0.05)


@contextmanager
def _saying(path: Path, said: bytes) -> Iterator[None]:
    """Somebody who says this to one client, whatever it asks."""

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(said)

    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join(10)


def test_answer_without_an_end_is_an_error(path: Path) -> None:
    with _saying(path, b'{"value": 1}\n{"val'):
        values = ask(path, "flows")
        assert next(values) == 1
        with pytest.raises(ControlError, match="broke off its answer"):
            next(values)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[1]\n", b'{"QMP": {}}\n', b"\xff\n", b"[" * 9999 + b"\n"],
)
def test_somebody_who_is_no_daemon_is_an_error(path: Path, said: bytes) -> None:
    with _saying(path, said), pytest.raises(ControlError, match="is no daemon of l3dsr"):
        ask_once(path, "status")


def test_what_is_no_text_is_not_asked_for(path: Path) -> None:
    with pytest.raises(ControlError, match="is not UTF-8"):
        ask_once(path, "drain", node=os.fsdecode(b"node\xff"))


def test_commands_of_the_daemons_are_those_of_the_document() -> None:
    document = (Path(__file__).parents[3] / "docs" / "control.md").read_text()
    _, _, commands = document.partition("## Commands")
    rows = [
        line.split("|")[1]
        for line in commands.partition("## Limits")[0].splitlines()
        if line.startswith("| `")
    ]
    named = {row.split("`")[1]: "balancer" in row for row in rows if row.strip() != "`do`"}
    assert named == {**dict.fromkeys(COMMON, False), **dict.fromkeys(BALANCER, True)}
