"""Packets that are lost, that come twice, and that overtake each other. No link carries superpackets here, so
that one packet of the router's rules is one segment.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lab import FROM_NODE, FROM_VIP, TO_CLIENT, TO_NODE, TO_VIP, Direction, Faults, Lab
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import md5_of_download, md5_of_echo
from tests.lab.lossless import repairs
from tests.lab.observed import counters_of, daemon_of, logged, node_of

pytestmark = pytest.mark.root

DIRECTIONS = {"client to balancer": TO_VIP, "balancer to node": TO_NODE, "node to client": FROM_NODE}
ALONG_THE_STREAM = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
SHARE = 0.01
MOST_MEGABYTES = 10
SEGMENTS_OF_A_MEGABYTE = 2**20 // 1436


@pytest.fixture(scope="module")
def bad_weather_lab(engine: str) -> Iterator[Lab]:
    with Lab(mtu_sized=True, engine=engine) as fresh:
        fresh.start_daemons()
        yield fresh


def assert_a_megabyte_comes_back(lab: Lab) -> None:
    assert md5_of_echo(lab.client, lab.content.path("1m")) == lab.content.md5("1m")


def assert_megabytes_come_back_until(lab: Lab, enough: Callable[[], bool]) -> None:
    """How much is lost of one is a matter of chance."""
    for _ in range(MOST_MEGABYTES):
        assert_a_megabyte_comes_back(lab)
        if enough():
            return
    pytest.fail(f"too little was lost of {MOST_MEGABYTES} MiB")


def assert_no_wrong_checksum(lab: Lab, before: dict[str, dict[str, int]]) -> None:
    for name, changes in lab.counters_since(before).items():
        assert changes.get("TcpInCsumErrors", 0) == 0, name


# --- all along a transfer ---


@ALONG_THE_STREAM
def test_a_transfer_survives_loss(bad_weather_lab: Lab, direction: Direction) -> None:
    before = bad_weather_lab.counters()
    with bad_weather_lab.weather.loss(direction, SHARE) as lost:
        assert_megabytes_come_back_until(bad_weather_lab, lambda: lost.hits() >= 5)
    assert_no_wrong_checksum(bad_weather_lab, before)


@ALONG_THE_STREAM
def test_a_transfer_survives_duplication(bad_weather_lab: Lab, direction: Direction) -> None:
    before = bad_weather_lab.counters()
    with bad_weather_lab.weather.duplicate(direction, 0.2) as copied:
        assert_a_megabyte_comes_back(bad_weather_lab)
        assert_a_megabyte_comes_back(bad_weather_lab)
    assert copied.hits() > SEGMENTS_OF_A_MEGABYTE // 20
    assert_no_wrong_checksum(bad_weather_lab, before)


@ALONG_THE_STREAM
def test_a_transfer_survives_reordering(bad_weather_lab: Lab, direction: Direction) -> None:
    before = bad_weather_lab.counters()
    with bad_weather_lab.weather.impairer(direction, Faults(seed=11, reorder=0.1)) as passed:
        assert_a_megabyte_comes_back(bad_weather_lab)
    assert passed.hits() > SEGMENTS_OF_A_MEGABYTE // 2
    changes = bad_weather_lab.counters_since(before)
    receivers = ["client"] if direction == FROM_NODE else ["node1", "node2", "node3"]
    assert sum(changes[name].get("TcpExtTCPOFOQueue", 0) for name in receivers) > 10
    assert_no_wrong_checksum(bad_weather_lab, before)


def test_transfers_survive_everything_at_once(bad_weather_lab: Lab) -> None:
    faults = {
        direction: Faults(seed=seed, drop=SHARE, duplicate=SHARE, reorder=0.03)
        for seed, direction in enumerate((TO_VIP, TO_NODE, TO_CLIENT))
    }
    before = bad_weather_lab.counters()
    with ExitStack() as weather:
        passed = [
            weather.enter_context(bad_weather_lab.weather.impairer(direction, fault))
            for direction, fault in faults.items()
        ]
        assert md5_of_download(bad_weather_lab.client, f"{VIP}/1m") == bad_weather_lab.content.md5("1m")
        assert_a_megabyte_comes_back(bad_weather_lab)
        targets = [f"/rough/{number}" for number in range(100)]
        answers = converse(bad_weather_lab.client, [Client((request(target),)) for target in targets])
        assert min(impairment.hits() for impairment in passed) > 500
    assert [answer.error for answer in answers] == [""] * len(targets)
    assert [answer.body.decode() for answer in answers] == [
        f"{answer.node} {target}\n" for answer, target in zip(answers, targets, strict=True)
    ]
    assert_no_wrong_checksum(bad_weather_lab, before)


SYSCTLS = ("tcp_sack", "tcp_timestamps", "tcp_window_scaling")


@pytest.mark.parametrize("absent", [*SYSCTLS, "all"])
def test_a_transfer_of_a_client_without_an_option_survives_loss(bad_weather_lab: Lab, absent: str) -> None:
    without = SYSCTLS if absent == "all" else (absent,)
    for name in without:
        bad_weather_lab.client.sysctl(f"net.ipv4.{name}", 0)
    try:
        with (
            bad_weather_lab.weather.loss(TO_VIP, SHARE) as lost_there,
            bad_weather_lab.weather.loss(TO_CLIENT, SHARE) as lost_back,
        ):
            assert_megabytes_come_back_until(
                bad_weather_lab, lambda: lost_there.hits() >= 3 and lost_back.hits() >= 3
            )
    finally:
        for name in without:
            bad_weather_lab.client.sysctl(f"net.ipv4.{name}", 1)


# --- one packet of a connection's beginning ---

BODY = b"b" * 4096
PAYLOAD = "ip length > 60"
# What is lost, where, and which matching packets pass before it.
LOSSES = {
    "SYN": (TO_VIP, "tcp flags syn", 0),
    "SYN-ACK": (FROM_VIP, "tcp flags & (syn | ack) == syn | ack", 0),
    "end of the handshake": (TO_VIP, f"tcp flags & (syn | ack) == ack {PAYLOAD.replace('> 60', '< 60')}", 0),
    "first payload": (TO_VIP, f"tcp flags & syn == 0 {PAYLOAD}", 0),
    "second segment": (TO_VIP, f"tcp flags & syn == 0 {PAYLOAD}", 1),
    "handoff": (TO_NODE, "tcp flags syn", 0),
    "segment behind the handoff": (TO_NODE, f"tcp flags & syn == 0 {PAYLOAD}", 0),
    "last segment of the request": (TO_NODE, f"tcp flags & syn == 0 {PAYLOAD}", 1),
    "first packet of the node": (FROM_NODE, "", 0),
    "answer": (FROM_NODE, PAYLOAD, 0),
    "end of the answer": (FROM_NODE, "tcp flags & fin == fin", 0),
    "end of the client": (TO_VIP, "tcp flags & fin == fin", 0),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_connection_survives_the_loss_of_its(bad_weather_lab: Lab, what: str) -> None:
    direction, condition, skipped = LOSSES[what]
    request_id = f"lost-{what}"
    post = request("/echo", f"X-Request-Id: {request_id}", method="POST", body=BODY)
    node = node_of(bad_weather_lab, "/echo")
    with bad_weather_lab.weather.drop(direction, condition, skip=skipped) as dropped:
        (answer,) = converse(bad_weather_lab.client, [Client((post,))])
    assert dropped.hits() == 1
    assert (answer.error, answer.body) == ("", BODY)
    assert answer.node == node
    assert len(logged(bad_weather_lab, node, request_id, at_least=1)) == 1


@pytest.mark.parametrize("times", [2, 3])
def test_a_connection_survives_a_handoff_that_is_lost_again(bad_weather_lab: Lab, times: int) -> None:
    with bad_weather_lab.weather.drop(TO_NODE, "tcp flags syn", packets=times) as dropped:
        (answer,) = converse(bad_weather_lab.client, [Client((request("/64k"),))])
    assert dropped.hits() == times
    assert hashlib.md5(answer.body).hexdigest() == bad_weather_lab.content.md5("64k")


COPIES = {
    "SYN": (TO_VIP, "tcp flags syn"),
    "SYN-ACK": (FROM_VIP, "tcp flags & (syn | ack) == syn | ack"),
    "end of the handshake": (TO_VIP, f"tcp flags & (syn | ack) == ack {PAYLOAD.replace('> 60', '< 60')}"),
    "first payload": (TO_VIP, f"tcp flags & syn == 0 {PAYLOAD}"),
    "handoff": (TO_NODE, "tcp flags syn"),
    "everything to the VIP": (TO_VIP, ""),
    "everything to the node": (TO_NODE, ""),
    "everything to the client": (TO_CLIENT, ""),
}


@pytest.mark.parametrize("what", COPIES)
def test_a_request_is_answered_once_when_twice_comes(bad_weather_lab: Lab, what: str) -> None:
    direction, condition = COPIES[what]
    request_id = f"twice-{what}"
    post = request("/echo", f"X-Request-Id: {request_id}", method="POST", body=BODY)
    with bad_weather_lab.weather.duplicate(direction, condition=condition) as copied:
        answers = converse(bad_weather_lab.client, [Client((post,))] * 5)
    assert copied.hits() >= 5
    assert [(answer.error, answer.body) for answer in answers] == [("", BODY)] * 5
    assert len(logged(bad_weather_lab, answers[0].node, request_id, at_least=5)) == 5


def test_retransmitted_handshakes_and_handoffs_are_not_counted_as_errors(bad_weather_lab: Lab) -> None:
    balancer = daemon_of(bad_weather_lab.balancer)
    before = counters_of(balancer)
    with bad_weather_lab.weather.drop(TO_NODE, "tcp flags syn") as dropped:
        (answer,) = converse(bad_weather_lab.client, [Client((request("/1k"),))])
    assert dropped.hits() == 1
    assert answer.status == 200
    after = counters_of(balancer)
    assert after["hand_off_again"] > before.get("hand_off_again", 0)
    assert after.get("resets_sent", 0) == before.get("resets_sent", 0)


# --- no loss at all ---


def test_without_superpackets_nothing_is_retransmitted_either(bad_weather_lab: Lab) -> None:
    def transfer() -> None:
        posts = [request(f"/echo?{number}", method="POST", body=BODY) for number in range(50)]
        answers = converse(bad_weather_lab.client, [Client((post,)) for post in posts])
        assert [answer.body == BODY for answer in answers] == [True] * len(posts)
        assert md5_of_download(bad_weather_lab.client, f"{VIP}/1m") == bad_weather_lab.content.md5("1m")

    assert repairs(bad_weather_lab, transfer) == {}
