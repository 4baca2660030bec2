"""Packets at random on both data planes: the same ones in each run; with L3DSR_FUZZ_SECONDS further ones,
for so long for each daemon.
"""

import os

import pytest

from tests.conformance.balancer import fuzz as balancer
from tests.conformance.conftest import LoadedBalancers, LoadedBridges
from tests.conformance.fuzz import conversations
from tests.conformance.packetbridge import fuzz as packetbridge

SECONDS = float(os.environ.get("L3DSR_FUZZ_SECONDS", "0"))
BALANCERS, PACKETBRIDGES = 50, 10
"""Conversations."""
pytestmark = [pytest.mark.root, pytest.mark.timeout(SECONDS + 300)]


def test_balancers_agree_on_packets_at_random(balancers: LoadedBalancers) -> None:
    programs = balancers.within(None)
    conversations(lambda seed: balancer.Conversation(seed, programs), SECONDS, fewest=BALANCERS)


def test_packetbridges_agree_on_packets_at_random(bridges: LoadedBridges) -> None:
    programs = bridges.within(None)
    conversations(lambda seed: packetbridge.Conversation(seed, programs), SECONDS, fewest=PACKETBRIDGES)
