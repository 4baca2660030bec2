"""What the balancer makes of a node's datagrams, and of their absence, under a clock of the test."""

import errno
from itertools import count

import pytest

from balancer.core.channel import MAX_FLOW_QUESTIONS, Conversation, FlowFound, State
from balancer.core.service import Service, make_nodes
from common.counters import Counters
from common.keyring import Keyring
from common.wire.channel import FlowAnswer, FlowQuestion
from tests.unit.wire import channel_messages as bytes_of
from tests.unit.wire.channel_messages import HANDOFF_KEY, NODE, TIME, refusal, tagged, untagged

QUESTION = FlowQuestion(1, bytes([203, 0, 113, 7]), 49152)
WALL = TIME + 0.75
ROUND_TRIP = 0.01


class Talk:
    """A conversation with node n1, nonces 1, 2, 3 and so on, periods of a second from 100 s on."""

    def __init__(self, *vip_indices: int, keys: tuple[bytes, ...] = (HANDOFF_KEY,)) -> None:
        self.counters = Counters[str]()
        self.now = 100.0
        nonces = count(1)
        self.conversation = Conversation(
            "n1",
            NODE,
            vip_indices or (1,),
            Keyring(keys).channel_keys,
            lambda: next(nonces),
            self.counters,
            self.now,
        )

    def state(self) -> State:
        return self.conversation.word.state

    def ask(self) -> tuple[int, int]:
        """TOS byte and nonce of a new period's first request."""
        tos = self.conversation.begin()
        request = self.conversation.ask_report(self.now, WALL)
        return tos, int.from_bytes(request[8:16], "big")

    def hear(self, data: bytes) -> FlowFound | None:
        return self.conversation.receive(data, self.now + ROUND_TRIP, WALL + ROUND_TRIP)

    def end(self) -> None:
        self.now += 1.0
        self.conversation.end(self.now)

    def answered_period(self, *, seen: int | None = None) -> None:
        tos, nonce = self.ask()
        self.hear(report(nonce, tos=tos if seen is None else seen))
        self.end()

    def missed_periods(self, number: int) -> None:
        for _ in range(number):
            self.ask()
            self.end()


def report(
    nonce: int, *, tos: int = 4, node: bytes = NODE, key: bytes = HANDOFF_KEY, time: int = TIME
) -> bytes:
    body = bytes([tos]) + bytes_of.REPORT_BODY[1:] + bytes_of.VIPS
    flags = 0x80 * (key[-1] & 1)
    return tagged(untagged(bytes_of.REPORT, body, flags=flags, nonce=nonce, node=node, time=time), key)


def flow(nonce: int) -> bytes:
    return tagged(untagged(bytes_of.FLOW, bytes_of.FLOW_BODY, nonce=nonce))


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_a_request_for_a_report_has_the_bytes_of_the_document(talk: Talk) -> None:
    talk.conversation.begin()
    asked = talk.conversation.ask_report(talk.now, WALL)
    assert asked == tagged(untagged(bytes_of.ASK_REPORT, b"", nonce=1))


def test_a_request_for_a_flow_has_the_bytes_of_the_document(talk: Talk) -> None:
    asked = talk.conversation.ask_flow(QUESTION, talk.now, WALL)
    assert asked == (1, tagged(untagged(bytes_of.ASK_FLOW, bytes_of.QUESTION_BODY, nonce=1)))


def test_a_report_is_the_node_s_word(talk: Talk) -> None:
    assert talk.state() is State.UNKNOWN
    _, nonce = talk.ask()
    assert talk.hear(report(nonce)) is None
    word = talk.conversation.word
    assert (word.node, word.state, word.text) == ("n1", State.OK, "ok")
    assert word.since == word.heard == 100.01
    assert word.round_trip == pytest.approx(ROUND_TRIP)
    assert word.report is not None
    assert word.report.facts.release == "0.1.0"
    assert [vip.flows for vip in word.report.facts.vips] == [12, 0]
    # The node's clock says TIME and 500 ms; ours says TIME and 755 ms in the middle of the round trip.
    assert word.clock_offset == pytest.approx(-0.255)
    assert talk.conversation.answered


def test_the_state_lasts_over_reports_and_two_misses(talk: Talk) -> None:
    talk.answered_period()
    talk.answered_period()
    talk.missed_periods(2)
    assert talk.state() is State.OK
    assert talk.conversation.word.since == 100.01
    talk.answered_period()
    talk.missed_periods(2)
    assert talk.state() is State.OK


def test_after_three_misses_a_node_is_silent_and_its_last_report_is_kept(talk: Talk) -> None:
    talk.answered_period()
    talk.missed_periods(3)
    word = talk.conversation.word
    assert (word.state, word.since, word.heard) == (State.SILENT, 104.0, 100.01)
    assert word.report is not None
    assert "UDP port 19507" in word.text
    talk.missed_periods(1)
    assert talk.conversation.word.since == 104.0
    talk.answered_period()
    assert talk.state() is State.OK


def test_a_node_that_never_answers_is_unknown_and_then_silent(talk: Talk) -> None:
    talk.missed_periods(2)
    assert talk.state() is State.UNKNOWN
    talk.missed_periods(1)
    assert talk.state() is State.SILENT


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (errno.ECONNREFUSED, State.CLOSED),
        (errno.EHOSTUNREACH, State.UNREACHABLE),
        (errno.ENETUNREACH, State.UNREACHABLE),
        (errno.EPERM, State.UNREACHABLE),
        (errno.EAGAIN, State.SILENT),
        (errno.EMSGSIZE, State.SILENT),
    ],
)
def test_an_error_of_the_network_says_why_there_is_no_answer(talk: Talk, number: int, state: State) -> None:
    for _ in range(3):
        talk.ask()
        talk.conversation.fail(number, "no way")
        talk.end()
    assert talk.state() is state
    assert ("no way" in talk.conversation.word.text) == (state is State.UNREACHABLE)


@pytest.mark.parametrize(
    ("reason", "version", "time", "state", "said"),
    [
        (1, 1, TIME, State.REFUSED_TAG, "key file"),
        (2, 1, TIME + 90, State.REFUSED_TIME, "90 s ahead of ours"),
        (2, 1, TIME - 75, State.REFUSED_TIME, "75 s behind ours"),
        (3, 2, TIME, State.VERSION, "version 2"),
    ],
)
def test_a_refusal_says_why_there_is_no_answer(
    talk: Talk, reason: int, version: int, time: int, state: State, said: str
) -> None:
    talk.answered_period()
    for _ in range(3):
        assert talk.state() is State.OK
        _, nonce = talk.ask()
        talk.hear(refusal(reason, version=version, time=time, nonce=nonce))
        talk.end()
    assert talk.state() is state
    assert said in talk.conversation.word.text
    assert talk.counters["channel_refusals"] == 3


def test_an_answer_outweighs_hints_before_and_after_it(talk: Talk) -> None:
    for _ in range(5):
        _, nonce = talk.ask()
        talk.hear(refusal(1, nonce=nonce))
        talk.conversation.fail(errno.ECONNREFUSED, "refused")
        talk.hear(report(nonce))
        talk.conversation.fail(errno.ECONNREFUSED, "refused")
        talk.end()
        assert talk.state() is State.OK


def test_the_last_hint_counts_and_is_forgotten_after_a_while(talk: Talk) -> None:
    talk.ask()
    talk.conversation.fail(errno.EHOSTUNREACH, "no route to host")
    talk.conversation.fail(errno.ECONNREFUSED, "refused")
    talk.end()
    talk.missed_periods(2)
    assert talk.state() is State.CLOSED
    talk.missed_periods(1)
    assert talk.state() is State.SILENT


def test_one_icmp_error_explains_a_silence_however_long(talk: Talk) -> None:
    """Linux routers send no more of them to whoever tries once a second."""
    talk.ask()
    talk.conversation.fail(errno.EHOSTUNREACH, "no route to host")
    talk.end()
    talk.missed_periods(10)
    assert talk.state() is State.UNREACHABLE


def test_late_repeated_and_invented_answers_are_ignored_and_counted(talk: Talk) -> None:
    _, late = talk.ask()
    talk.end()
    _, nonce = talk.ask()
    for data in (report(late), report(99), flow(nonce), refusal(1, nonce=99), report(nonce, node=bytes(4))):
        talk.hear(data)
    assert talk.state() is State.UNKNOWN
    assert talk.counters["channel_unasked"] == 5
    talk.hear(report(nonce))
    word = talk.conversation.word
    talk.hear(report(nonce))
    assert talk.conversation.word is word
    assert talk.counters["channel_unasked"] == 6


def test_an_answer_with_a_wrong_tag_is_ignored_and_the_right_one_still_counts(talk: Talk) -> None:
    _, nonce = talk.ask()
    talk.hear(report(nonce)[:-1] + b"\0")
    talk.hear(report(nonce, key=bytes(15) + b"\x01"))
    assert (talk.state(), talk.counters["channel_bad_tag"]) == (State.UNKNOWN, 2)
    talk.hear(report(nonce))
    assert talk.state() is State.OK


def test_rubbish_is_counted_by_its_reason(talk: Talk) -> None:
    _, nonce = talk.ask()
    malformed = tagged(untagged(bytes_of.REPORT, b"x", nonce=nonce))
    for data in (b"", b"hello", malformed, untagged(bytes_of.ASK_REPORT, b"", nonce=nonce)):
        talk.hear(data)
    assert talk.state() is State.UNKNOWN
    assert talk.counters["not_a_channel_message"] == 2
    assert talk.counters["bad_channel_message"] == 2


def test_a_request_that_comes_back_is_no_answer(talk: Talk) -> None:
    talk.conversation.begin()
    talk.hear(talk.conversation.ask_report(talk.now, WALL))
    asked = talk.conversation.ask_flow(QUESTION, talk.now, WALL)
    assert asked is not None
    assert talk.hear(asked[1]) is None
    assert (talk.state(), talk.counters["bad_channel_message"]) == (State.UNKNOWN, 2)


def test_each_attempt_of_a_period_may_be_answered_and_tells_when_it_was_made(talk: Talk) -> None:
    _, first = talk.ask()
    talk.now += 0.25
    second = int.from_bytes(talk.conversation.ask_report(talk.now, WALL)[8:16], "big")
    assert second != first
    talk.hear(report(first))
    assert talk.conversation.word.round_trip == pytest.approx(0.26)
    assert talk.conversation.word.asked == 100.0
    talk.hear(report(second))
    assert talk.conversation.word.round_trip == pytest.approx(ROUND_TRIP)
    assert talk.conversation.word.asked == 100.25


def test_while_keys_change_an_answer_under_either_key_is_believed() -> None:
    new = bytes(16)
    talk = Talk(keys=(new, HANDOFF_KEY))
    for key in (new, HANDOFF_KEY):
        _, nonce = talk.ask()
        talk.hear(report(nonce, key=key))
        talk.end()
    assert talk.counters["channel_answers"] == 2


def test_what_a_node_knows_of_a_flow_is_returned_once(talk: Talk) -> None:
    asked = talk.conversation.ask_flow(QUESTION, talk.now, WALL)
    assert asked is not None
    found = talk.hear(flow(asked[0]))
    assert found is not None
    assert found.answer == FlowAnswer("established", 1.5, 0.25, bytes_of.DETAILS)
    assert found.round_trip == pytest.approx(ROUND_TRIP)
    assert talk.hear(flow(asked[0])) is None
    assert not talk.conversation.answered


def test_open_questions_for_flows_are_bounded(talk: Talk) -> None:
    asked = [talk.conversation.ask_flow(QUESTION, talk.now, WALL) for _ in range(MAX_FLOW_QUESTIONS)]
    assert talk.conversation.ask_flow(QUESTION, talk.now, WALL) is None
    talk.conversation.forget(nonce for nonce, _ in filter(None, asked[:1]))
    assert talk.conversation.ask_flow(QUESTION, talk.now, WALL) is not None


def test_each_period_has_the_dscp_of_another_vip() -> None:
    talk = Talk(1, 7, 63)
    assert [talk.ask()[0] for _ in range(4)] == [1 << 2, 7 << 2, 63 << 2, 1 << 2]
    talk.conversation.set_indices((2,))
    assert talk.ask()[0] == 2 << 2
    talk.conversation.set_indices(())
    assert talk.ask()[0] == 0


def test_a_remarked_dscp_is_noticed_by_its_index_and_ecn_is_not() -> None:
    talk = Talk(1, 7)
    talk.answered_period(seen=1 << 2 | 0b11)
    talk.answered_period(seen=0)
    word = talk.conversation.word
    assert word.dscp_seen == {1: 1, 7: 0}
    assert word.marking_problems() == ["DSCP 7 arrives at node n1 as DSCP 0: a router on the way remarks it"]
    talk.answered_period()
    talk.answered_period()
    assert talk.conversation.word.marking_problems() == []
    talk.conversation.set_indices((7,))
    assert talk.conversation.word.dscp_seen == {7: 7}


def test_an_answer_that_comes_after_a_reload_is_of_the_dscp_that_was_asked_with() -> None:
    talk = Talk(1, 7)
    _, nonce = talk.ask()
    talk.conversation.set_indices((7, 1))
    talk.hear(report(nonce, tos=1 << 2))
    assert talk.conversation.word.dscp_seen == {1: 1}
    talk.end()
    _, nonce = talk.ask()
    talk.conversation.set_indices((7,))
    talk.hear(report(nonce, tos=1 << 2))
    assert talk.conversation.word.marking_problems() == []


def test_a_dscp_that_never_arrives_is_noticed_while_another_does() -> None:
    talk = Talk(1, 7)
    for _ in range(5):
        talk.answered_period()
        talk.missed_periods(1)
    assert talk.state() is State.OK
    assert talk.conversation.word.dscp_seen == {1: 1, 7: None}
    (problem,) = talk.conversation.word.marking_problems()
    assert "DSCP 7 does not arrive" in problem


def test_a_dscp_that_never_arrives_is_noticed_by_requests_without_one() -> None:
    talk = Talk(7)
    for _ in range(5):
        assert talk.conversation.word.dscp_seen == {}
        talk.ask()
        request = talk.conversation.ask_report(talk.now, WALL, marked=False)
        talk.hear(report(int.from_bytes(request[8:16], "big"), tos=0))
        talk.end()
    assert (talk.state(), talk.conversation.word.dscp_seen) == (State.OK, {7: None})
    talk.answered_period(seen=7 << 2)
    assert talk.conversation.word.dscp_seen == {7: 7}


def test_a_node_that_was_silent_has_no_lost_dscp() -> None:
    talk = Talk(1, 7)
    for _ in range(2):
        talk.answered_period()
        talk.missed_periods(13)
    talk.answered_period()
    assert talk.conversation.word.marking_problems() == []


def service(vip: int, port: int, index: int) -> Service:
    address = bytes([192, 168, 33, vip])
    return Service(address, port, index, *make_nodes(address, port, index, {"n1": (NODE, 1)}))


def test_a_vip_map_that_differs_is_told_in_words(talk: Talk) -> None:
    assert talk.conversation.word.vip_map_problems([service(10, 80, 1)]) == []
    talk.answered_period()
    word = talk.conversation.word
    assert word.vip_map_problems([service(10, 80, 1), service(11, 443, 7)]) == []
    assert word.vip_map_problems([service(12, 80, 1), service(10, 80, 2), service(13, 80, 3)]) == [
        "node n1 maps DSCP 1 to 192.168.33.10:80, here it is VIP 192.168.33.12:80",
        "node n1 maps VIP 192.168.33.10:80 to DSCP 1, here it is DSCP 2",
        "node n1 does not serve VIP 192.168.33.13:80: give its packetbridge that VIP with DSCP 3",
    ]


def test_a_node_of_another_release_is_named_as_long_as_it_answers(talk: Talk) -> None:
    assert talk.conversation.word.release_problems("9.9.9") == []
    talk.answered_period()
    assert talk.conversation.word.release_problems("0.1.0") == []
    said = ["node n1 runs release 0.1.0, the balancer 9.9.9: bring both to the same one"]
    assert talk.conversation.word.release_problems("9.9.9") == said
    talk.missed_periods(3)
    assert talk.state() is State.SILENT
    assert talk.conversation.word.release_problems("9.9.9") == []
