"""The parts of a trace: which packets it shows, and what it says of them."""

import pytest

from common.config import ConfigError
from common.control_client import ControlError
from common.wire import segment
from common.wire.offload import Packet
from common.wire.segment import Segment
from l3dsr.trace import choice, legs, lines, scope
from l3dsr.trace.choice import Chooser, Filter
from l3dsr.trace.legs import Both, Numbers, SeqDeltas
from l3dsr.trace.passage import Passing
from l3dsr.trace.scope import Leg, Scope
from tests.unit.l3dsr import reports
from tests.unit.wire.packets import Described, built
from tests.unit.wire.test_handoff_document import hex_block

CLIENT, OTHER = bytes([203, 0, 113, 7]), bytes([203, 0, 113, 8])
NODE1, NODE2 = bytes([192, 168, 33, 20]), bytes([192, 168, 33, 21])
VIP = bytes([192, 168, 33, 10])
SERVED = scope.of_reports([reports.BALANCER, reports.PACKETBRIDGE])


def parsed(packet: bytes) -> Segment:
    return segment.parse_untrusted(Packet(packet))


def tagged(client: str = "203.0.113.7", node: str = "192.168.33.20", index: int = 7) -> Segment:
    return parsed(built(Described(client=client, server=node, tos=index << 2, seq=5000, ack=9000)))


def to_vip(client: str = "203.0.113.7", vip: str = "192.168.33.10") -> Segment:
    return parsed(built(Described(client=client, server=vip, seq=5000, ack=9000)))


def from_vip(client: str = "203.0.113.7") -> Segment:
    return parsed(
        built(Described(client=client, server="192.168.33.10", from_client=False, seq=9000, ack=5000))
    )


def from_backend() -> Segment:
    described = Described(server="192.168.33.30", server_port=8080, from_client=False, seq=8000, ack=5000)
    return parsed(built(described))


def shown(words: str, packets: list[Segment], served: Scope = SERVED) -> list[bool]:
    chosen = choice.parse(words.split(), served)
    chooser, served = Chooser(chosen), choice.widened(served, chosen)
    answers = []
    for packet in packets:
        leg = served.leg_of(packet)
        is_handoff = scope.handoff_in(packet) is not None
        answers.append(leg is not None and chooser.takes(packet, leg, is_handoff=is_handoff))
    return answers


def test_scope_is_what_the_daemons_serve() -> None:
    assert SERVED.vips == {(VIP, 80): 7}
    assert SERVED.backends == {(bytes([192, 168, 33, 30]), 8080)}
    assert SERVED.bridges == {NODE1, NODE2}
    assert SERVED.node_names == {"node1": NODE1, "node2": NODE2}


@pytest.mark.parametrize(
    ("packet", "leg"),
    [
        (tagged(), Leg.TO_NODE),
        (to_vip(), Leg.TO_VIP),
        (from_vip(), Leg.FROM_VIP),
        (from_backend(), Leg.FROM_BACKEND),
        (tagged(node="10.0.0.1"), None),
        (to_vip(vip="10.0.0.1"), None),
    ],
)
def test_a_packet_s_addresses_tell_its_leg(packet: Segment, leg: Leg | None) -> None:
    assert SERVED.leg_of(packet) is leg


def test_where_no_daemon_is_known_any_dscp_counts() -> None:
    assert Scope().leg_of(tagged(node="10.0.0.1")) is Leg.TO_NODE
    assert Scope().leg_of(to_vip()) is None


def test_without_a_filter_tagged_packets_are_shown() -> None:
    assert shown("", [tagged(), to_vip(), from_vip(), from_backend()]) == [True, False, False, False]


def test_a_client_s_packets_are_shown_on_all_legs() -> None:
    packets = [tagged(), to_vip(), from_vip(), from_backend(), tagged("203.0.113.8"), from_vip("203.0.113.8")]
    assert shown("client 203.0.113.7", packets) == [True, True, True, True, False, False]
    assert shown("client 203.0.113.7:49152", packets[:1]) == [True]
    assert shown("client 203.0.113.7:1", packets[:1]) == [False]


@pytest.mark.parametrize("words", ["node node1", "node 192.168.33.20", "dscp 7 node node1"])
def test_a_node_s_connections_are_shown_on_all_legs_once_they_are_known(words: str) -> None:
    packets = [
        to_vip(),
        tagged(),
        to_vip(),
        from_vip(),
        tagged(node="192.168.33.21"),
        from_vip("203.0.113.8"),
    ]
    assert shown(words, packets) == [False, True, True, True, False, False]


def test_dscp_and_vip_choose_the_same_packets() -> None:
    packets = [tagged(), tagged(index=8), from_vip()]
    assert shown("dscp 7", packets) == [True, False, True]
    assert shown("vip 192.168.33.10:80", packets) == [True, False, True]
    assert shown("vip 192.168.33.10:81", packets) == [False, False, False]


def test_a_vip_that_no_daemon_knows_is_followed_by_its_address() -> None:
    packets = [tagged(), to_vip(), tagged(), from_vip()]
    assert shown("vip 192.168.33.10", packets, Scope()) == [False, True, True, True]


def test_handoffs_are_shown_alone() -> None:
    packets = [parsed(hex_block("packet")), tagged(), to_vip()]
    assert shown("handoffs", packets) == [True, False, False]
    assert shown("handoffs client 203.0.113.8", packets) == [False, False, False]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("clientt 1.2.3.4", "filter word 'clientt' is none of: client ADDR"),
        ("client", "filter word 'client' needs something behind it: client ADDR"),
        ("client 1.2.3", "client '1.2.3' is not ADDR[:PORT], such as 192.168.33.10:80"),
        ("dscp 64", "dscp '64' is not a number from 1 to 63"),
        ("node node9", "node 'node9' is neither an IPv4 address nor one of: node1, node2"),
    ],
)
def test_a_wrong_filter_says_what_is_allowed(words: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choice.parse(words.split(), SERVED)
    assert str(raised.value).startswith(complaint)


def test_chosen_connections_are_bounded() -> None:
    chooser = Chooser(Filter(node=NODE1))
    for port in range(1, choice.MAX_CONNECTIONS + 2):
        chooser.takes(tagged()._replace(source_port=port), Leg.TO_NODE, is_handoff=False)
    first, last = (from_vip()._replace(destination_port=port) for port in (1, choice.MAX_CONNECTIONS + 1))
    assert not chooser.takes(first, Leg.FROM_VIP, is_handoff=False)
    assert chooser.takes(last, Leg.FROM_VIP, is_handoff=False)


@pytest.mark.parametrize(
    ("packet", "leg", "expected"),
    [
        (tagged(), Leg.TO_NODE, Both(Numbers(5000, 9000), Numbers(5000, 8000))),
        (from_vip(), Leg.FROM_VIP, Both(Numbers(9000, 5000), Numbers(8000, 5000))),
        (from_backend(), Leg.FROM_BACKEND, Both(Numbers(9000, 5000), Numbers(8000, 5000))),
        (
            tagged()._replace(ack=100),
            Leg.TO_NODE,
            Both(Numbers(5000, 100), Numbers(5000, 0xFFFFFFFF - 899)),
        ),
        (tagged()._replace(flags=0x02), Leg.TO_NODE, Both(Numbers(5000, None), Numbers(5000, None))),
    ],
)
def test_both_legs_numbers_differ_by_the_seq_delta(packet: Segment, leg: Leg, expected: Both) -> None:
    assert legs.both(packet, leg, 1000) == expected


class Asked:
    def __init__(self, *answers: int | ControlError | None) -> None:
        self.answers = list(answers)
        self.connections: list[scope.Connection] = []

    def __call__(self, connection: scope.Connection) -> int | None:
        self.connections.append(connection)
        answer = self.answers.pop(0)
        if isinstance(answer, ControlError):
            raise answer
        return answer


def test_a_seq_delta_is_asked_for_until_it_is_known_and_then_no_more() -> None:
    now = [0.0]
    asked = Asked(None, 77)
    seq_deltas = SeqDeltas(asked, lambda: now[0])
    found = []
    for now[0] in (0.0, 0.4, 0.5, 1.0, 20.0):
        found.append(seq_deltas.of((CLIENT, 1)))
    assert found == [None, None, 77, 77, 77]
    assert len(asked.connections) == 2


def test_a_new_connection_of_the_same_addresses_is_asked_for_again() -> None:
    now = [0.0]
    seq_deltas = SeqDeltas(Asked(77, 78), lambda: now[0])
    seq_deltas.begin((CLIENT, 1), 1000, has_node=False)
    assert seq_deltas.of((CLIENT, 1)) == 77
    seq_deltas.begin((CLIENT, 1), 1000, has_node=True)
    assert seq_deltas.of((CLIENT, 1)) == 77
    seq_deltas.begin((CLIENT, 1), 2000, has_node=False)
    assert seq_deltas.of((CLIENT, 1)) == 78


def test_a_seq_delta_is_asked_for_again_as_soon_as_its_connection_has_a_node() -> None:
    now = [0.0]
    seq_deltas = SeqDeltas(Asked(None, 77), lambda: now[0])
    seq_deltas.begin((CLIENT, 1), 1000, has_node=False)
    assert seq_deltas.of((CLIENT, 1)) is None
    now[0] = 0.01
    assert seq_deltas.of((CLIENT, 1)) is None
    seq_deltas.begin((CLIENT, 1), 1000, has_node=True)
    assert seq_deltas.of((CLIENT, 1)) == 77


def test_questions_are_bounded_and_a_silent_daemon_is_left_alone() -> None:
    now = [0.0]
    asked = Asked(*range(20), ControlError("silent"), 3)
    seq_deltas = SeqDeltas(asked, lambda: now[0])
    found = [seq_deltas.of((CLIENT, port)) for port in range(40)]
    assert found == [*range(20), *[None] * 20]
    for now[0] in (1.0, 2.0, 5.9):
        assert seq_deltas.of((CLIENT, 50)) is None
    assert len(asked.connections) == 21
    now[0] = 6.1
    assert seq_deltas.of((CLIENT, 50)) == 3


def passing(packet: bytes, *, is_leaving: bool = False) -> Passing:
    return Passing(1_699_965_771.25, "eth0", is_leaving, packet, parsed(packet))


def line(what: Passing, both: Both | None = None) -> str:
    """Without the time of day, which depends on where one is."""
    text = lines.line(what, scope.handoff_in(what.segment), both)
    assert text[8:15] == ".250000"
    return text[17:]


def test_a_handoff_is_one_line() -> None:
    assert line(passing(hex_block("packet"))) == (
        "eth0 in   203.0.113.7:49152 > 192.168.33.20:80  DSCP 1 (TOS 4, 0x04)  HANDOFF S-1 16909060,"
        " A-1 2325416989, window 64240, MSS 1460, scale 7, promised 7, SACK,"
        " TSval 287454020 TSecr 1432778632,"
        ' key 1, age 2 s, tag d9526759b06c531b, len 38 "GET /a HTTP/1.1"'
    )


def test_a_tagged_packet_shows_dscp_tos_and_both_legs() -> None:
    packet = built(
        Described(
            *("203.0.113.7", "192.168.33.20"),
            tos=7 << 2 | 2,
            seq=5000,
            ack=9000,
            flags=0x18,
            options=(("NOP", None), ("NOP", None), ("Timestamp", (11, 22))),
            payload=b"xyz",
        )
    )
    both = Both(Numbers(5000, 9000), Numbers(5000, 8000))
    assert line(passing(packet, is_leaving=True), both) == (
        "eth0 out  203.0.113.7:49152 > 192.168.33.20:80  DSCP 7 (TOS 30, 0x1e)"
        "  [P.] seq 5000 ack 9000 win 502 TSval 11 TSecr 22 len 3"
        "  | client leg seq 5000 ack 9000 | backend leg seq 5000 ack 8000"
    )


def test_a_payload_cannot_reach_the_terminal() -> None:
    handoff = scope.handoff_in(parsed(hex_block("packet")))
    assert handoff is not None
    hostile = handoff._replace(payload=b"GET /\x1b]0;owned\x07 \xff HTTP/1.1\r\nX: y")
    assert lines.line(passing(hex_block("packet")), hostile, None).endswith(
        'len 32 "GET /\\x1b]0;owned\\x07 \\xff HTTP/1.1"'
    )
