"""Whatever comes, in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.packetbridge.scene import (
    CI,
    LI,
    OTHER_SERVICE,
    SERVICE,
    SIZE,
    WALL,
    Scene,
    add,
    from_backend,
    from_client,
    handoff,
    syn_ack,
)
from tests.unit.wire.packets import (
    ACK,
    BACKEND,
    CLIENT,
    FIN,
    NODE,
    RST,
    VIP,
    built,
    described_packets,
    mutated,
    quickly,
    u8,
    u32,
    with_ip_checksum,
)

addressed = st.builds(
    lambda described, ends, port: described._replace(
        client=CLIENT, server=ends[0], client_port=port, from_client=ends[1], server_port=ends[2]
    ),
    described_packets,
    st.sampled_from(((NODE, True, 80), (BACKEND, False, 8080))),
    st.sampled_from((49152, 50_000)),
)
plausible = st.one_of(
    st.builds(
        handoff,
        st.binary(min_size=1, max_size=30),
        client_isn=st.sampled_from((CI, CI + 5000)),
        time=st.sampled_from((WALL, WALL + 1, WALL - 1)),
        fin=st.booleans(),
        timestamps=st.sampled_from((None, (1, 2), (2**32 - 1, 2**32 - 1))),
    ),
    st.builds(
        syn_ack, client_isn=st.sampled_from((CI, CI + 5000, 7)), timestamps=st.sampled_from((None, (5, 1)))
    ),
    st.builds(
        from_client,
        st.binary(max_size=9),
        sent=st.sampled_from((0, SIZE, SIZE + 1)),
        flags=st.sampled_from((ACK, ACK | FIN, RST, RST | ACK)),
    ),
    st.builds(
        from_backend,
        st.binary(max_size=9),
        sent=st.sampled_from((0, 1)),
        flags=st.sampled_from((ACK, ACK | FIN, RST, RST | ACK)),
    ),
    addressed,
)
packets = st.one_of(
    plausible.map(built),
    mutated(plausible.map(built)),
    mutated(plausible.map(built)).map(with_ip_checksum),
    st.binary(max_size=80),
)


def leaves_with(packet: bytes, source: str, destination: str) -> bool:
    ends = bytes(map(int, f"{source}.{destination}".split(".")))
    return len(packet) >= 20 and packet[12:20] == ends


@quickly
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("balancer", "backend", "backend", "time")), packets, u8), max_size=25
    )
)
def test_random_packets_never_raise_and_known_flows_never_show_node_or_backend(
    steps: list[tuple[str, bytes, int]],
) -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    scene.balancer(handoff())
    for side, packet, seconds in steps:
        match side:
            case "balancer":
                sent = scene.balancer(packet)
            case "backend":
                sent = scene.backend(packet)
            case _:
                sent, questions = scene.pass_time(seconds / 4)
                for key in questions:
                    scene.core.socket_exists(key, seconds % 2 == 0, scene.now)
        known = {record.key for record in scene.spliced()}
        for left in sent:
            assert not leaves_with(left, NODE, CLIENT)
            assert not (leaves_with(left, BACKEND, CLIENT) and left[12:24] in known)
    assert "event_out_of_place" not in scene.counters
    assert scene.core.sizes["flows"] <= 2
    assert scene.core.sizes["waiting_bytes"] >= 0


@quickly
@given(delta=u32, numbers=st.lists(st.tuples(u32, u32), min_size=1, max_size=5))
def test_what_one_leg_says_the_other_hears_for_any_pair_of_numbers(
    delta: int, numbers: list[tuple[int, int]]
) -> None:
    scene = Scene()
    scene.open(handoff(timestamps=None), syn_ack(isn=add(LI, -delta), timestamps=None))
    for number, acknowledged in numbers:
        reply = from_backend(b"y", options=())._replace(seq=number)
        expected = reply._replace(server=VIP, server_port=80, seq=add(number, delta))
        assert scene.fast_backend(reply) == built(expected)
        segment = from_client(b"x", options=())._replace(ack=acknowledged)
        to_backend = segment._replace(server=BACKEND, server_port=8080, tos=0, ack=add(acknowledged, -delta))
        assert scene.fast_balancer(segment) == built(to_backend)
