"""Packets at random on both data planes. L3DSR_FUZZ_SECONDS says for how long, for each daemon."""

import os

import pytest

from tests.conformance.balancer import fuzz as balancer
from tests.conformance.conftest import LoadedBalancers, LoadedBridges
from tests.conformance.fuzz import FEWEST, conversations
from tests.conformance.packetbridge import fuzz as packetbridge

SECONDS = float(os.environ.get("L3DSR_FUZZ_SECONDS", "10"))
pytestmark = [pytest.mark.root, pytest.mark.timeout(SECONDS + 300)]


def test_balancers_agree_on_packets_at_random(balancers: LoadedBalancers) -> None:
    programs = balancers.within(None)
    assert conversations(lambda seed: balancer.Conversation(seed, programs), SECONDS) >= FEWEST


def test_packetbridges_agree_on_packets_at_random(bridges: LoadedBridges) -> None:
    programs = bridges.within(None)
    assert conversations(lambda seed: packetbridge.Conversation(seed, programs), SECONDS) >= FEWEST
