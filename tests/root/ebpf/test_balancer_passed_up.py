"""Connections that the programs leave to Python, and when they are taken back: map `claims`.

Each packet here is one that the programs have passed up, and have claimed its connection before.
"""

import functools
from collections.abc import Iterator

import pytest
import trio
from scapy.layers.inet import ICMP, IP
from trio.testing import MockClock

from balancer.core.engine import BalancerCore
from balancer.core.flow_table import Tables
from balancer.core.service import Limits, Services
from balancer.ebpf import abi
from balancer.ebpf.passed_up import PassedUp
from balancer.ebpf.tables import Keys, MapFlowTable, MapHalfOpenTable, MapVerifiedTable
from common.bpf.abi import FLOW_ID
from common.bpf.maps import HashMap
from common.wire import handoff
from common.wire.offload import NO_OFFLOAD, Packet
from tests.root.ebpf.hash_maps import hash_map
from tests.unit.balancer.scene import (
    COOKIE_KEY,
    GET,
    RST,
    TAG_KEY,
    VIP,
    WALL_SECONDS,
    Client,
    Scene,
    make_service,
)
from tests.unit.wire.packets import siphash

pytestmark = pytest.mark.root


class Claimed(Scene):
    """A scene whose core is on maps; every packet comes as one that was passed up."""

    def __init__(self, flows: HashMap, verified: HashMap, half_open: HashMap, claims: HashMap) -> None:
        super().__init__()
        services = Services([make_service()])
        tables = Tables(
            MapFlowTable(flows, services),
            MapVerifiedTable(verified, services, 300.0),
            MapHalfOpenTable(half_open, services, 60.0),
        )
        sign = functools.partial(handoff.sign, mac=functools.partial(siphash, TAG_KEY))
        mac = functools.partial(siphash, COOKIE_KEY)
        self.core = BalancerCore(services, mac, sign, lambda: WALL_SECONDS, Limits(), tables)
        self.passed_up = PassedUp(self.core, tables, claims)
        self.claims = claims
        self.keys = Keys(services)

    def packed(self, key: bytes) -> bytes:
        packed = self.keys.pack(key)
        assert packed is not None
        return packed

    def receive_packet(self, packet: Packet) -> list[Packet]:
        self.claims.update(self.packed(packet.data[12:24]), bytes(4))
        return self.passed_up.receive(packet, self.now)

    @property
    def are_claimed(self) -> int:
        return self.claims.count()


@pytest.fixture
def scene() -> Iterator[Claimed]:
    with (
        hash_map(FLOW_ID.size, abi.FLOW.size) as flows,
        hash_map(FLOW_ID.size, abi.VERIFIED.size) as verified,
        hash_map(FLOW_ID.size, abi.HELLO.size) as half_open,
        hash_map(FLOW_ID.size, 4) as claims,
    ):
        yield Claimed(flows, verified, half_open, claims)


def patrolled(scene: Claimed, seconds: float) -> None:
    """Lets the patrol walk for so long."""

    async def walk() -> None:
        with trio.move_on_after(seconds):
            await scene.passed_up.patrol()

    trio.run(walk, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def client(scene: Claimed) -> Client:
    return Client(scene).connect()


def test_connection_is_the_programs_again_once_it_has_its_node(scene: Claimed, client: Client) -> None:
    assert len(client.send(GET)) == 1
    assert client.node is not None
    assert scene.are_claimed == 0


def test_connection_stays_claimed_while_its_beginning_is_collected(scene: Claimed, client: Client) -> None:
    assert client.send(GET[:10]) == []
    assert scene.are_claimed == 1
    patrolled(scene, 10)
    assert scene.are_claimed == 1
    assert len(client.send(GET[10:], at=10)) == 2
    assert client.node is not None
    assert scene.are_claimed == 0


def test_connection_stays_claimed_as_long_as_its_answer_may_be_asked_for(
    scene: Claimed, client: Client
) -> None:
    (answer,) = client.send(b"GET /\x01 HTTP/1.1\r\n\r\n")
    assert b"400 Bad Request" in answer
    patrolled(scene, 10)
    assert scene.are_claimed == 1
    scene.now += 61
    scene.passed_up.on_timeout(scene.now)
    patrolled(scene, 3)
    assert scene.are_claimed == 0


def test_connection_that_the_client_has_reset_is_claimed_no_longer(scene: Claimed, client: Client) -> None:
    client.send(GET[:10])
    client.send(at=10, flags=RST)
    assert scene.are_claimed == 0


def test_patrol_takes_back_what_has_got_its_node_for_want_of_patience(scene: Claimed, client: Client) -> None:
    client.send(GET[:10])
    scene.now += 0.06
    assert len(scene.passed_up.on_timeout(scene.now)) == 1
    assert client.node is not None
    assert scene.are_claimed == 1, "nothing has come since"
    patrolled(scene, 2.5)
    assert scene.are_claimed == 0


def test_patrol_takes_back_claims_of_an_earlier_run_but_not_at_first_sight(scene: Claimed) -> None:
    """A packet may just be on its way to Python."""
    scene.claims.update(scene.packed(Client(scene).key), bytes(4))
    patrolled(scene, 1.5)
    assert scene.are_claimed == 1
    patrolled(scene, 2.5)
    assert scene.are_claimed == 0


def test_patrol_leaves_a_claim_that_is_a_new_one(scene: Claimed) -> None:
    key = scene.packed(Client(scene).key)

    async def renew() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.passed_up.patrol)
            for since in range(5):
                scene.claims.update(key, since.to_bytes(4, "little"))
                await trio.sleep(0.9)
            nursery.cancel_scope.cancel()

    trio.run(renew, clock=MockClock(autojump_threshold=0))
    assert scene.are_claimed == 1


def test_icmp_errors_release_nothing(scene: Claimed, client: Client) -> None:
    client.send(GET[:10])
    quoted = client.segment()[:28]
    error = IP(src="192.0.2.1", dst=VIP) / ICMP(type=3, code=4) / quoted
    scene.passed_up.receive(Packet(bytes(error), NO_OFFLOAD), scene.now)
    assert scene.are_claimed == 1


def test_patrol_takes_back_claims_of_a_service_that_is_gone(scene: Claimed) -> None:
    packed = scene.packed(Client(scene).key)
    scene.claims.update(packed[:6] + b"\x07" + packed[7:], bytes(4))
    patrolled(scene, 2.5)
    assert scene.are_claimed == 0
