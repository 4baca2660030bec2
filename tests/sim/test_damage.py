"""Packets that are damaged on the way, and packets that make no sense."""

import pytest

from common.wire.offload import Packet
from tests.sim import expect
from tests.sim.network import Network, is_handoff


def damage_nth(network: Network, number: int, at: int) -> None:
    """Flip bits in byte ``at`` of the ``number``-th packet from client to balancer, from 1."""

    def damaged(packet: Packet) -> Packet:
        if len(network.client_to_balancer.carried) != number - 1:
            return packet
        data = bytearray(packet.data)
        data[at % len(data)] ^= 0x55
        return packet._replace(data=bytes(data))

    network.client_to_balancer.alter = damaged


@pytest.mark.parametrize("at", [24, 28, 34, 36, 40, 41, 48, 56, 58])
def test_a_syn_that_is_damaged_shapes_no_connection(at: int) -> None:
    network = Network()
    damage_nth(network, 1, at)
    fetch = network.fetch("/object/30000")
    network.finish(fetch)
    expect.answered(fetch, "/object/30000")
    expect.clean(network)


@pytest.mark.parametrize("at", [24, 28, 34, 36, 60, 84, 52, 56, 70])
def test_a_first_payload_that_is_damaged_is_sent_again_and_answered(at: int) -> None:
    """It is neither refused nor reset: the client has sent a good request."""
    network = Network()
    damage_nth(network, 3, at)
    fetch = network.fetch("/object/30000")
    network.finish(fetch)
    expect.answered(fetch, "/object/30000")
    network.run(expect.LINGER)
    assert [violation for host in network.hosts for violation in host.violations] == []


@pytest.mark.parametrize("seed", range(10))
def test_noise_disturbs_no_transfer(seed: int) -> None:
    """Damaged copies of real packets arrive everywhere beside the real ones."""
    network = Network(seed)
    chance = network.chance
    network.keep_no_order()

    def noise(packet: Packet) -> tuple[float, ...] | None:
        if is_handoff(packet) or chance.random() > 0.3:
            return None
        data = bytearray(packet.data)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(24, len(data))] ^= 1 << chance.randrange(8)
        broken = Packet(bytes(data))
        network.timeline.after(0.002, lambda: network.balancer.receive(broken))
        return None

    network.client_to_balancer.add(noise)
    fetch = network.fetch("/object/200000")
    network.finish(fetch)
    expect.answered(fetch, "/object/200000")
    assert len(network.served) == 1
