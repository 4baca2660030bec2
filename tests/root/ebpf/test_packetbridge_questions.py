"""Idle flows of the packetbridge, about whose sockets the kernel is asked (map `questions`)."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio
from trio.testing import MockClock

from common.counters import Counters
from common.net.sock_diag import SocketQuery
from packetbridge.core.service import Service
from packetbridge.ebpf import questions as asking
from packetbridge.ebpf.abi import FLOW, StateNumber
from packetbridge.ebpf.flows import backend_key, index_of, key_of_backend
from packetbridge.ebpf.questions import Questions, flows_of
from packetbridge.ebpf.waiting_room import Openness
from tests.root.ebpf.bridge_flows import KEY, OTHER_KEY, SEEN, BridgeMaps, bridge_maps, row
from tests.root.namespaces import CLIENT, MIDDLE, Hosts
from tests.unit.packetbridge.scene import BACKEND_KEY, CI, LI, SERVICE

pytestmark = pytest.mark.root

NOW = 9000.9
PORT = 9000
OURS = Service(1, b"\xc0\xa8\x21\x0a", 80, MIDDLE.packed, MIDDLE.packed, PORT)
"""Its backend is the host in the middle, where the test runs."""


@pytest.fixture
def maps() -> Iterator[BridgeMaps]:
    with bridge_maps() as maps:
        yield maps


@pytest.fixture
def query(hosts: Hosts) -> Iterator[SocketQuery]:
    with hosts.middle.entered(), closing(SocketQuery()) as query:
        yield query


@pytest.fixture
def connected(hosts: Hosts) -> Iterator[socket.socket]:
    """The backend's end of a connection with the client."""
    with hosts.middle.entered():
        listener = socket.create_server((str(MIDDLE), PORT))
    with hosts.client.entered():
        client = socket.socket()
    with listener, client:
        client.connect((str(MIDDLE), PORT))
        accepted, _ = listener.accept()
        with accepted:
            yield accepted


def key_of(accepted: socket.socket) -> bytes:
    port: int = accepted.getpeername()[1]
    return CLIENT.packed + port.to_bytes(2, "big") + b"\1\0"


def ask(maps: BridgeMaps, query: SocketQuery, *keys: bytes) -> Counters[str]:
    """What was counted when the kernel had been asked about the flows."""
    for key in keys:
        maps.questions.update(key, SEEN.to_bytes(4, "little"))
    counters: Counters[str] = Counters()
    asking = Questions(maps.questions, query, {1: OURS}, maps.table, counters)
    questions = asking.take()
    asking.settle(questions, asking.existing(flows_of(questions)), NOW)
    assert maps.questions.count() == 0
    return counters


def test_keys_name_the_flow_from_either_side() -> None:
    assert backend_key(SERVICE, KEY) == BACKEND_KEY
    assert key_of_backend(SERVICE, BACKEND_KEY) == KEY
    assert index_of(OTHER_KEY) == 2


def test_flow_whose_socket_exists_begins_its_idle_time_again(
    maps: BridgeMaps, query: SocketQuery, connected: socket.socket
) -> None:
    key = key_of(connected)
    maps.put(StateNumber.ESTABLISHED, key)
    assert ask(maps, query, key) == {"socket_exists": 1}
    kept = maps.flows.lookup(key)
    assert kept is not None
    before = row(StateNumber.ESTABLISHED)
    assert FLOW.unpack(kept) == before._replace(client=before.client._replace(seen=9000))
    assert maps.tombstones.count() == 0


def test_flow_whose_socket_has_gone_is_buried(maps: BridgeMaps, query: SocketQuery) -> None:
    maps.put(StateNumber.ESTABLISHED)
    maps.put(StateNumber.ESTABLISHED, OTHER_KEY)
    assert ask(maps, query, KEY) == {"socket_gone": 1}
    assert [key for key, _ in maps.flows.items()] == [OTHER_KEY]
    stone = KEY + CI.to_bytes(4, "little") + LI.to_bytes(4, "little")
    assert dict(maps.tombstones.items()) == {stone: (9000).to_bytes(4, "little")}


def test_socket_that_has_closed_meanwhile_counts_as_gone(
    maps: BridgeMaps, query: SocketQuery, connected: socket.socket
) -> None:
    key = key_of(connected)
    maps.put(StateNumber.ESTABLISHED, key)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connected.close()
    assert ask(maps, query, key) == {"socket_gone": 1}
    assert maps.table.openness(key) is Openness.UNKNOWN


def test_flow_of_a_service_that_is_not_there_any_more_is_buried(maps: BridgeMaps, query: SocketQuery) -> None:
    maps.put(StateNumber.ESTABLISHED, OTHER_KEY)
    assert ask(maps, query, OTHER_KEY) == {"socket_gone": 1}
    assert maps.flows.count() == 0


def test_flow_that_is_another_one_when_the_answer_comes_is_not_touched(
    maps: BridgeMaps, query: SocketQuery
) -> None:
    maps.put(StateNumber.ESTABLISHED)
    maps.questions.update(KEY, SEEN.to_bytes(4, "little"))
    asking = Questions(maps.questions, query, {1: OURS}, maps.table, Counters())
    questions = asking.take()
    later = FLOW.pack(row(StateNumber.ESTABLISHED)._replace(client_isn=CI + 7))
    maps.flows.update(KEY, later)
    for existing in (set(), {backend_key(OURS, KEY)}):
        asking.settle(questions, existing, NOW)
        assert dict(maps.flows.items()) == {KEY: later}
    assert maps.tombstones.count() == 0


def test_flow_of_which_the_kernel_says_nothing_is_kept(maps: BridgeMaps, query: SocketQuery) -> None:
    maps.put(StateNumber.ESTABLISHED)
    query.close()
    assert ask(maps, query, KEY) == {"socket_query_failed": 1, "socket_exists": 1}
    assert maps.table.openness(KEY) is Openness.SPLICED


def test_question_about_a_flow_that_has_ended_meanwhile_changes_nothing(
    maps: BridgeMaps, query: SocketQuery, connected: socket.socket
) -> None:
    ask(maps, query, KEY, key_of(connected))
    assert (maps.flows.count(), maps.tombstones.count()) == (0, 0)


def test_all_questions_are_answered_within_a_second(maps: BridgeMaps, query: SocketQuery) -> None:
    counters: Counters[str] = Counters()
    maps.put(StateNumber.ESTABLISHED)
    made = Questions(maps.questions, query, {1: OURS}, maps.table, counters)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.sleep(0.5)
            maps.questions.update(KEY, bytes(4))
            await trio.sleep(asking._PAUSE_SECONDS)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0))
    assert counters == {"socket_gone": 1}


@pytest.mark.parametrize(
    ("state", "openness"),
    [
        (StateNumber.OPENING, Openness.OPENING),
        (StateNumber.ECHOING, Openness.SPLICED),
        (StateNumber.ESTABLISHED, Openness.SPLICED),
    ],
)
def test_openness_is_that_of_the_programs_state(
    maps: BridgeMaps, state: StateNumber, openness: Openness
) -> None:
    assert maps.table.openness(KEY) is Openness.UNKNOWN
    maps.put(state)
    assert maps.table.openness(KEY) is openness
    assert len(maps.table) == 1
