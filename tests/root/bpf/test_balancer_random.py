"""Random segments, by a seed, at connections in every state: programs and core answer alike."""

import random

import pytest

from balancer.core.service import Limits
from tests.root.bpf.arbitrary import option_area
from tests.root.bpf.balancer_twin import Twin
from tests.unit.balancer.scene import ACK, CLIENT, FIN, GET, PSH, RST, SYN, VIP, Client, make_service
from tests.unit.wire.packets import Described, built, with_field

pytestmark = pytest.mark.root

PAYLOADS = (b"", b"", b"x", GET, GET[:20], GET * 40, b"\x16\x03\x01", b"GET /a%2fb?c HTTP/1.1\r\n", b"GET *")
FLAGS = (ACK, ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK, FIN, 0, ACK | 0x40, SYN | 0xC0)
LIMITS = Limits(flows=1000, verified=1000, half_open=1000, resets_per_second=1e6)


def random_segment(chance: random.Random, client: Client) -> bytes:
    """Near the client's own numbers mostly."""
    payload = chance.choice(PAYLOADS)[: 1424 - 40]
    at = chance.choice((0, 0, 0, -1, -2, 1, len(GET), 5000, 14239, 14240, 1 << 24, 1 << 31))
    ack = chance.choice((0, 0, 0, 0, 1, -1, 100, 1 << 31))
    flags = chance.choice(FLAGS)
    stamped = bytes.fromhex("0101080a") + chance.randbytes(4) + client.echo.to_bytes(4, "big")
    area = chance.choice((b"", stamped, stamped, option_area(chance)))
    isn = client.isn if chance.random() < 0.9 else client.isn + 77
    packet = built(
        Described(
            client=CLIENT,
            server=VIP,
            client_port=client.port,
            seq=(isn + (0 if flags & SYN else 1) + at) % 2**32,
            ack=(client.server_isn + 1 + ack) % 2**32,
            flags=flags,
            window=chance.choice((0, 502, 65535)),
            raw_options=area,
            payload=payload,
            urgent=chance.choice((0, 7)),
            tos=chance.getrandbits(8),
            ttl=chance.choice((2, 64, 255)),
            identification=chance.getrandbits(16),
        )
    )
    if chance.random() < 0.05:
        at = chance.randrange(len(packet) // 2) * 2
        packet = (
            with_field(packet, at, chance.getrandbits(16))
            if at not in {0, 2, 6, 8, 12, 14, 16, 18, 22}
            else packet
        )
    return packet


@pytest.mark.parametrize("seed", range(12))
def test_random_segments_are_answered_alike(seed: int) -> None:
    chance = random.Random(seed)
    clients: list[Client] = []
    with Twin(make_service(), limits=LIMITS) as scene:
        for port in range(50_000, 50_012):
            stamps, sack = chance.random() < 0.7, chance.random() < 0.7
            scale, mss = chance.choice((None, 0, 7, 14)), chance.choice((None, 536, 1460, 9000))
            isn = chance.choice((0xFFFFFFFF, 0xFFFFFFF0, chance.getrandbits(32)))
            client = Client(scene, port=port, isn=isn, mss=mss, scale=scale, sack=sack, stamps=stamps)
            clients.append(client)
            if chance.random() < 0.9:
                client.greet()
            if chance.random() < 0.7:
                scene.receive(client.segment())
            if chance.random() < 0.6:
                client.send(GET)
        for _ in range(400):
            client = chance.choice(clients)
            if chance.random() < 0.03:
                client.greet()
            scene.receive(random_segment(chance, client))
            if chance.random() < 0.01:
                scene.pass_time(chance.choice((0.0078125, 0.0625, 5, 31, 61)))
        scene.check_tables()
