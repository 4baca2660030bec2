"""Both ends of the channel talk over loopback."""

import logging
import os
import secrets
import socket
from pathlib import Path

import pytest
import trio

from balancer.channel import FlowWord
from balancer.core.channel import State
from common.keyring import KeySource
from common.reports import FlowReport
from tests.unit.daemons.channel_ends import (
    CLIENT,
    FACTS,
    FLOW,
    PERIOD,
    BalancerEnd,
    Keys,
    NodeEnd,
    converse,
    peer,
)

NODE, OTHER_NODE = "127.19.6.1", "127.19.6.2"
KEY, OTHER_KEY = bytes(range(16)), bytes(range(1, 17))


@pytest.fixture
def keys(tmp_path: Path) -> KeySource:
    return Keys(tmp_path / "handoff.key", KEY).source


def test_a_node_reports_again_and_again_and_its_dscps_arrive(keys: KeySource) -> None:
    node = NodeEnd(NODE, keys)
    balancer = BalancerEnd(keys, node.port)

    async def script() -> None:
        word = await balancer.until(lambda word: len(word.dscp_seen) == 2)
        assert (word.state, word.dscp_seen) == (State.OK, {1: 1, 7: 7})
        assert word.report is not None
        assert word.report.facts == FACTS
        assert word.round_trip is not None
        assert 0 < word.round_trip < PERIOD
        assert word.asked in balancer.asked
        assert word.clock_offset is not None
        assert abs(word.clock_offset) < 0.1
        node.facts = FACTS._replace(uptime=7.0)
        await balancer.until(lambda word: word.report is not None and word.report.facts.uptime == 7)

    with node.open():
        converse(balancer, [peer(NODE, 1, 7)], node, script=script)
    assert set(balancer.told) == {("n1", State.OK)}
    assert len(balancer.told) >= 3


def test_a_node_is_asked_for_flows(keys: KeySource) -> None:
    node = NodeEnd(NODE, keys)
    balancer = BalancerEnd(keys, node.port)

    async def script() -> None:
        await balancer.until_state(State.OK)
        known = await balancer.channels.ask_flow("n1", 1, CLIENT, 49152)
        unknown = await balancer.channels.ask_flow("n1", 1, CLIENT, 49153)
        assert isinstance(known, FlowWord)
        assert isinstance(unknown, FlowWord)
        assert known.report == FlowReport(
            client="203.0.113.7",
            client_port=49152,
            vip_index=1,
            node=NODE,
            state="established",
            age=1.5,
            idle=0.25,
            details=FLOW.details,
        )
        assert unknown.report is None
        with pytest.raises(KeyError):
            await balancer.channels.ask_flow("n2", 1, CLIENT, 49152)

    with node.open():
        converse(balancer, [peer(NODE)], node, script=script)


def test_a_node_that_does_not_answer_has_no_word_about_flows(keys: KeySource) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((NODE, 0))
        balancer = BalancerEnd(keys, deaf.getsockname()[1])

        async def script() -> None:
            assert await balancer.channels.ask_flow("n1", 1, CLIENT, 49152, within=0.2) is None
            await balancer.until_state(State.SILENT)

        converse(balancer, [peer(NODE)], script=script)


def test_a_different_key_is_told_from_silence_and_mends(tmp_path: Path) -> None:
    ours, theirs = Keys(tmp_path / "ours", KEY), Keys(tmp_path / "theirs", OTHER_KEY)
    node = NodeEnd(NODE, theirs.source)
    balancer = BalancerEnd(ours.source, node.port)

    async def script() -> None:
        word = await balancer.until_state(State.REFUSED_TAG)
        assert "key file" in word.text
        theirs.write(OTHER_KEY, KEY)
        theirs.source.take(theirs.source.read())
        await balancer.until_state(State.OK)

    with node.open():
        converse(balancer, [peer(NODE)], node, script=script)
    assert node.counters["channel_bad_tag"] >= 3


def test_a_clock_that_is_off_is_told_with_its_error(keys: KeySource) -> None:
    node = NodeEnd(NODE, keys, clock_error=-100)
    balancer = BalancerEnd(keys, node.port)

    async def script() -> None:
        word = await balancer.until_state(State.REFUSED_TIME)
        assert " s behind ours" in word.text
        assert int(word.text.split(" s ")[0].split()[-1]) in (99, 100, 101)

    with node.open():
        converse(balancer, [peer(NODE)], node, script=script)


def test_a_clock_that_is_off_by_less_is_measured(keys: KeySource) -> None:
    node = NodeEnd(NODE, keys, clock_error=30)
    balancer = BalancerEnd(keys, node.port)

    async def script() -> None:
        await balancer.until(lambda word: word.clock_offset == pytest.approx(30, abs=0.1))

    with node.open():
        converse(balancer, [peer(NODE)], node, script=script)


def test_a_packetbridge_that_does_not_run_is_told_from_silence(
    keys: KeySource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((NODE, 0))
        port = free.getsockname()[1]
    balancer = BalancerEnd(keys, port)

    async def script() -> None:
        for _ in range(2):
            started = NodeEnd(NODE, keys, port)
            with started.open():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(started.server.run)
                    await balancer.until_state(State.OK)
                    nursery.cancel_scope.cancel()
            word = await balancer.until_state(State.CLOSED)
            assert f"UDP port {port}" in word.text
            await trio.sleep(2 * PERIOD)

    converse(balancer, [peer(NODE)], script=script)
    said = [record for record in caplog.records if record.name == "channel-test"]
    assert [record.levelname for record in said] == ["INFO", "WARNING", "INFO", "WARNING"]
    assert {record.__dict__["node"] for record in said} == {"n1"}


def test_nodes_come_move_and_go_while_others_stay(keys: KeySource) -> None:
    node = NodeEnd(NODE, keys)
    other = NodeEnd(OTHER_NODE, keys, node.port)
    balancer = BalancerEnd(keys, node.port)

    async def script() -> None:
        await balancer.until_state(State.OK)
        stays = balancer.word()
        balancer.channels.set_nodes([peer(NODE, 7), peer(OTHER_NODE, name="n2")])
        assert (balancer.word().since, balancer.word("n2").state) == (stays.since, State.UNKNOWN)
        await balancer.until_state(State.OK, "n2")
        balancer.channels.set_nodes([peer(OTHER_NODE)])
        assert balancer.word().state is State.UNKNOWN
        with pytest.raises(KeyError):
            balancer.word("n2")
        await balancer.until_state(State.OK)

    with node.open(), other.open():
        converse(balancer, [peer(NODE)], node, other, script=script)
    reports = node.counters["channel_reports"] + other.counters["channel_reports"]
    under_way = reports - balancer.counters["channel_answers"]
    assert 0 <= under_way <= 2, "at most one of each channel that was closed"


def test_nothing_grows_while_a_node_is_away_and_nodes_are_set_again_and_again(keys: KeySource) -> None:
    balancer = BalancerEnd(keys, 9)

    async def script() -> None:
        await balancer.until_state(State.CLOSED)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            balancer.channels.set_nodes([peer(f"127.19.7.{number % 2 + 1}")])
            await trio.sleep(PERIOD / 50)
        await balancer.until_state(State.CLOSED)
        assert len(os.listdir("/proc/self/fd")) == before

    converse(balancer, [peer(NODE)], script=script)


def test_what_was_under_way_as_a_node_was_taken_away_is_not_told(keys: KeySource) -> None:
    """Both may happen in one round of the loop: the answer is read after the reload."""
    node = NodeEnd(NODE, keys)
    balancer = BalancerEnd(keys, node.port)

    async def script() -> None:
        await balancer.until_state(State.OK)
        line = balancer.channels._lines["n1"]
        balancer.channels.set_nodes([])
        told = len(balancer.told)
        line._tell(line.conversation.word._replace(state=State.SILENT))
        assert len(balancer.told) == told

    with node.open():
        converse(balancer, [peer(NODE)], node, script=script)


def test_forged_answers_do_not_disturb_a_channel(keys: KeySource) -> None:
    """The node sends rubbish, the question, a damaged answer, and its answer twice."""
    node = NodeEnd(NODE, keys)
    with node.open(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        forger.setblocking(False)
        forger.bind((NODE, 0))
        balancer = BalancerEnd(keys, forger.getsockname()[1])

        async def forge() -> None:
            while True:
                await trio.lowlevel.wait_readable(forger)
                question, asker = forger.recvfrom(65536)
                answer = node.server.answer(question, 4, 0.0)
                if answer is None:  # to a filler
                    continue
                damaged = answer[:-1] + bytes([answer[-1] ^ 1])
                for said in (b"", secrets.token_bytes(1200), question, damaged, answer, answer):
                    forger.sendto(said, asker)

        async def script() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forge)
                await balancer.until(lambda _: balancer.counters["channel_answers"] >= 5)
                nursery.cancel_scope.cancel()

        converse(balancer, [peer(NODE)], script=script)
    assert {state for _, state in balancer.told} == {State.OK}
    assert balancer.word().dscp_seen == {1: 1}
    assert balancer.counters["channel_bad_tag"] >= 5
