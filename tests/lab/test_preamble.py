"""The first bytes of a connection: cut anywhere, slow, out of order, and never complete by themselves."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import TO_VIP, Faults, Lab
from tests.lab.conversation import VIP_ADDRESS, Answer, Client, converse, request
from tests.lab.observed import counters_of, daemon_of, node_of, payload_length, segments

pytestmark = pytest.mark.root

TARGET = "/cut/anywhere?by=tcp"
REQUEST = request(TARGET)
LINE = REQUEST.index(b"\r\n") + 2
CUTS = range(1, LINE + 1)
WITHOUT_KEY = REQUEST.index(b" HTTP/1.1") + len(" HTTP/1.1")
"""As many bytes do not tell the hash key: the last one of the version is needed."""
MOST_TRIES = 10
LONG_TARGET = "/long/" + "x" * 8000


def unread_keys(lab: Lab) -> int:
    """How many connections went to the node of their 4-tuple so far."""
    counters = counters_of(daemon_of(lab.balancer))
    return sum(number for name, number in counters.items() if name.startswith("key_unread"))


def assert_answered(answers: list[Answer], target: str) -> None:
    assert [(answer.error, answer.body.decode()) for answer in answers] == [
        ("", f"{answer.node} {target}\n") for answer in answers
    ]


def strays(answers: list[Answer], node: str) -> int:
    """Answers of other nodes than the URL's."""
    return sum(answer.node != node for answer in answers)


def cut(at: int, *, nodelay: bool) -> Client:
    return Client((REQUEST[:at], REQUEST[at:]), nodelay=nodelay)


def test_a_request_line_cut_at_every_byte_reaches_the_urls_node(running_lab: Lab) -> None:
    """The key is given up only where 50 ms pass on this machine between the one part and the other."""
    before = unread_keys(running_lab)
    with running_lab.client.capture(filter_expression="tcp dst port 80", snap_bytes=96) as path:
        answers = converse(running_lab.client, [cut(at, nodelay=True) for at in CUTS])
    assert_answered(answers, TARGET)
    unread = unread_keys(running_lab) - before
    assert strays(answers, node_of(running_lab, TARGET)) <= unread < len(CUTS) / 4
    first = {
        segment["TCP"].sport: payload_length(segment)
        for segment in reversed(segments(path))
        if payload_length(segment)
    }
    assert [first[answer.client_port] for answer in answers] == list(CUTS)


def test_a_client_with_nagle_is_answered_wherever_its_request_line_is_cut(running_lab: Lab) -> None:
    """It keeps the second part until the first is acknowledged, which nobody does before there is a node."""
    before = unread_keys(running_lab)
    answers = converse(running_lab.client, [cut(at, nodelay=False) for at in CUTS])
    assert_answered(answers, TARGET)
    assert unread_keys(running_lab) - before == sum(at < WITHOUT_KEY for at in CUTS)
    node = node_of(running_lab, TARGET)
    assert {answer.node for answer in answers[WITHOUT_KEY:]} == {node}


def test_connections_whose_key_is_not_known_are_spread_over_the_nodes(running_lab: Lab) -> None:
    answers = converse(running_lab.client, [cut(2, nodelay=False)] * 60)
    assert_answered(answers, TARGET)
    assert set(Counter(answer.node for answer in answers)) == {"node1", "node2", "node3"}


@pytest.mark.parametrize("nodelay", [True, False])
@pytest.mark.parametrize("pause", [0.002, 0.02])
def test_a_request_that_comes_byte_by_byte_is_answered(running_lab: Lab, nodelay: bool, pause: float) -> None:
    single = tuple(REQUEST[at : at + 1] for at in range(len(REQUEST)))
    answers = converse(running_lab.client, [Client(single, nodelay=nodelay)] * 4, pause=pause)
    assert_answered(answers, TARGET)


def test_a_client_that_goes_on_after_a_while_is_answered(running_lab: Lab) -> None:
    parts = (REQUEST[:2], REQUEST[2:9], REQUEST[9 : LINE + 5], REQUEST[LINE + 5 :])
    answers = converse(running_lab.client, [Client(parts), Client(parts, nodelay=False)], pause=0.4)
    assert_answered(answers, TARGET)


def test_a_client_that_says_nothing_for_a_while_reaches_the_urls_node(running_lab: Lab) -> None:
    before = unread_keys(running_lab)
    answers = converse(running_lab.client, [Client((b"", REQUEST))] * 5, pause=0.4)
    assert_answered(answers, TARGET)
    assert strays(answers, node_of(running_lab, TARGET)) == 0
    assert unread_keys(running_lab) == before


def test_empty_lines_before_the_request_do_no_harm(running_lab: Lab) -> None:
    answers = converse(running_lab.client, [Client((b"\r\n\r\n" + REQUEST,)), Client((b"\r\n", REQUEST))])
    assert_answered(answers, TARGET)
    assert strays(answers, node_of(running_lab, TARGET)) == 0


def in_parts(said: bytes, size: int) -> Client:
    return Client(tuple(said[at : at + size] for at in range(0, len(said), size)))


@pytest.mark.parametrize("size", [1424, 900])
def test_a_long_url_in_many_segments_reaches_its_node(running_lab: Lab, size: int) -> None:
    before = unread_keys(running_lab)
    answers = converse(running_lab.client, [in_parts(request(LONG_TARGET), size)] * 8)
    assert_answered(answers, LONG_TARGET)
    assert strays(answers, node_of(running_lab, LONG_TARGET)) <= unread_keys(running_lab) - before < 8


def test_a_url_in_more_segments_than_a_client_may_send_at_first_is_answered(running_lab: Lab) -> None:
    """Ten segments (RFC 6928) of 100 bytes do not tell the key; more come only behind an acknowledgment."""
    before = unread_keys(running_lab)
    answers = converse(running_lab.client, [in_parts(request(LONG_TARGET), 100)] * 8)
    assert_answered(answers, LONG_TARGET)
    assert unread_keys(running_lab) - before == 8


def test_a_fin_behind_an_incomplete_request_reaches_the_server(running_lab: Lab) -> None:
    """NGINX closes without an answer, as it does without a balancer."""
    clients = [Client((REQUEST[:at],), ending="in_last_segment") for at in (1, 3, 4, 12, LINE)]
    answers = converse(running_lab.client, clients)
    assert [(answer.data, answer.error) for answer in answers] == [(b"", "")] * len(clients)


@pytest.fixture
def disorder(running_lab: Lab) -> Iterator[None]:
    """Segments with payload overtake each other on their way to the VIP."""
    faults = Faults(seed=5, reorder=0.4, depth=3, hold=0.02)
    with running_lab.weather.impairer(TO_VIP, faults, "ip length > 60"):
        yield


@pytest.mark.usefixtures("disorder")
def test_segments_out_of_order_make_up_the_key(running_lab: Lab) -> None:
    """Some keys are given up where the machine is busy; the most are read, sooner or later."""
    node = node_of(running_lab, LONG_TARGET)
    for _ in range(MOST_TRIES):
        before = unread_keys(running_lab)
        with running_lab.balancer.capture(filter_expression="tcp dst port 80", snap_bytes=96) as path:
            answers = converse(running_lab.client, [in_parts(request(LONG_TARGET), 900)] * 20)
        unread = unread_keys(running_lab) - before
        assert_answered(answers, LONG_TARGET)
        assert strays(answers, node) <= unread
        if unread < 10 and len(began_with_a_later_segment(path)) >= 3:
            return
    pytest.fail("half of the keys are never read, or nothing is out of order")


def began_with_a_later_segment(path: Path) -> set[int]:
    """Ports of clients whose first segment with payload was not the first one of their stream."""
    found = [segment for segment in segments(path) if segment.dst == VIP_ADDRESS]
    isn = {segment["TCP"].sport: segment["TCP"].seq for segment in found if segment["TCP"].flags.S}
    first = {
        segment["TCP"].sport: segment["TCP"].seq for segment in reversed(found) if payload_length(segment)
    }
    return {port for port, number in first.items() if port in isn and number != (isn[port] + 1) % 2**32}
