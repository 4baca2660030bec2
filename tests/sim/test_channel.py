"""Both ends of the channel over a path that loses, doubles, delays and damages: seeded, with a fake clock."""

import heapq
import logging
import random
from contextlib import closing
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import pytest

from balancer.core.channel import Conversation, State
from common.counters import Counters
from common.keyring import KeySource
from common.wire.channel import NodeFacts, ServedVip
from packetbridge.channel import Server

NODE = IPv4Address("127.19.8.1")
FACTS = NodeFacts("1", "raw", 0.0, 0, (ServedVip(1, NODE.packed, 80, 5),))
START = 1_700_000_000.0
ATTEMPTS = (0.0, 0.25, 0.75)
PERIODS = 200


class Weather:
    """A conversation with a node, one period after the other; all that happens is an event at a time."""

    def __init__(self, keys: KeySource, seed: int, loss: float, longest_delay: float) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.loss = loss
        self.longest_delay = longest_delay
        self.asked, self.told, self.answers = Counters[str](), Counters[str](), 0
        self.states: list[State] = []
        self._order = count()
        self._events: list[tuple[float, int, str, bytes]] = []
        self.server = Server(
            NODE,
            keys,
            lambda: FACTS,
            lambda *_: None,
            self.told,
            logging.getLogger("channel-sim"),
            port=0,
            wall_ns=lambda: int((START + self.now) * 1e9),
        )
        self.conversation = Conversation(
            "n1",
            NODE.packed,
            (1,),
            keys.keyring.channel_keys,
            lambda: self.chance.getrandbits(64),
            self.asked,
            self.now,
        )

    def run(self) -> None:
        for period in range(PERIODS):
            self._at(period, "begin")
            for after in ATTEMPTS:
                self._at(period + after, "ask")
            self._at(period + 1, "end")
        while self._events:
            self.now, _, kind, data = heapq.heappop(self._events)
            self._happen(kind, data)

    def _happen(self, kind: str, data: bytes) -> None:
        wall = START + self.now
        if kind == "begin":
            self.conversation.begin()
        elif kind == "ask" and not self.conversation.answered:
            self._carry("request", self.conversation.ask_report(self.now, wall))
        elif kind == "request" and (answer := self.server.answer(data, 4, self.now)) is not None:
            self._carry("answer", answer)
        elif kind == "answer":
            self.answers += 1
            self.conversation.receive(data, self.now, wall)
        elif kind == "end":
            self.conversation.end(self.now)
            self.states.append(self.conversation.word.state)

    def _carry(self, kind: str, data: bytes) -> None:
        for _ in range(1 + (self.chance.random() < 0.1)):
            carried = bytearray(data)
            if self.chance.random() < 0.05:
                carried[self.chance.randrange(len(carried))] ^= 1 << self.chance.randrange(8)
            if self.chance.random() >= self.loss:
                self._at(self.now + self.chance.uniform(0, self.longest_delay), kind, bytes(carried))

    def _at(self, time: float, kind: str, data: bytes = b"") -> None:
        heapq.heappush(self._events, (time, next(self._order), kind, data))


@pytest.fixture
def keys(tmp_path: Path) -> KeySource:
    return KeySource(tmp_path, is_insecure=True)


@pytest.mark.parametrize("seed", range(10))
def test_bad_weather_costs_no_channel_and_leaves_no_wrong_word(keys: KeySource, seed: int) -> None:
    weather = Weather(keys, seed, loss=0.15, longest_delay=0.2)
    with closing(weather.server):
        weather.run()
    assert set(weather.states[2:]) == {State.OK}
    word = weather.conversation.word
    assert word.report is not None
    assert word.report.facts == FACTS
    assert word.dscp_seen == {1: 1}
    # Each answer that arrived was believed or counted with the reason against it.
    assert weather.answers == sum(weather.asked.values()) - weather.asked["channel_misses"]
    assert 0 < weather.asked["channel_answers"] <= weather.told["channel_reports"]


def test_answers_that_come_too_late_are_silence(keys: KeySource) -> None:
    weather = Weather(keys, 0, loss=0.0, longest_delay=0.0)
    weather._carry = lambda kind, data: weather._at(weather.now + 0.6, kind, data)  # type: ignore[method-assign]
    with closing(weather.server):
        weather.run()
    assert set(weather.states[2:]) == {State.SILENT}
    assert weather.answers == 3 * PERIODS
    # Nothing is asked after the last period, so that its answers are not yet out of date.
    assert weather.asked["channel_unasked"] == 3 * (PERIODS - 1)


@pytest.mark.parametrize("loss", [0.5, 1.0])
def test_a_state_other_than_ok_takes_three_misses_in_a_row(keys: KeySource, loss: float) -> None:
    weather = Weather(keys, 1, loss=loss, longest_delay=0.1)
    with closing(weather.server):
        weather.run()
    assert weather.asked["channel_misses"] > 10
    assert State.SILENT in weather.states
    assert (State.OK in weather.states) == (loss < 1)
