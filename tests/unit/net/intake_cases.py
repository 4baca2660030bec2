"""Packets at the edges of what the two daemons take off the host, for the filters and for the kernel."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, IPOption_NOP, TCPerror
from scapy.packet import Packet, Raw

from common.net import intake

ADDRESS = IPv4Address("10.98.1.2")
BALANCER = intake.of_balancer(ADDRESS, 80)
PACKETBRIDGE = intake.of_packetbridge(ADDRESS, [8080, 80, 80])
CLIENT, OTHER = "10.98.1.1", "10.98.1.3"
TAG = 1 << 2
MORE_FRAGMENTS = 1


@dataclass(frozen=True)
class Case:
    name: str
    packet: bytes
    by_balancer: bool
    by_packetbridge: bool


def _tcp(port: int = 80, **ip: Any) -> Packet:
    return IP(src=CLIENT, dst=str(ADDRESS), **ip) / TCP(sport=40000, dport=port, flags="S")


def _error(kind: int, quoted: Packet, **ip: Any) -> Packet:
    return IP(src=OTHER, dst=str(ADDRESS), **ip) / ICMP(type=kind, code=0) / quoted


def _quoted(source: str = str(ADDRESS), port: int = 80, **ip: Any) -> Packet:
    return IPerror(src=source, dst=CLIENT, **ip) / TCPerror(sport=port, dport=40000, seq=7)


_VIP = "192.0.2.80"
_NOPS = [IPOption_NOP()] * 4
_PACKETS: list[tuple[str, Packet, bool, bool]] = [
    ("tcp to the service port", _tcp(), True, False),
    ("tcp with the tag", _tcp(tos=TAG), True, True),
    ("tcp with the highest index and congestion experienced", _tcp(tos=0xFF), True, True),
    ("tcp with ECN bits only", _tcp(tos=3), True, False),
    ("tcp to a second VIP's port", _tcp(8080, tos=TAG), False, True),
    ("tcp to another port", _tcp(81, tos=TAG), False, False),
    ("tcp to another address", IP(src=CLIENT, dst=OTHER, tos=TAG) / TCP(dport=80), False, False),
    (
        "tcp from the service port",
        IP(src=CLIENT, dst=str(ADDRESS), tos=TAG) / TCP(sport=80, dport=40000),
        False,
        False,
    ),
    ("tcp behind ip options", _tcp(tos=TAG, options=_NOPS), True, True),
    ("another port behind ip options", _tcp(81, tos=TAG, options=_NOPS), False, False),
    ("first fragment", _tcp(tos=TAG, flags=MORE_FRAGMENTS) / Raw(bytes(12)), True, True),
    ("later fragment", _tcp(tos=TAG, frag=1), False, False),
    (
        "last fragment of a ping",
        IP(src=CLIENT, dst=str(ADDRESS), proto=1, frag=185) / Raw(bytes(64)),
        False,
        False,
    ),
    ("udp to the service port", IP(src=CLIENT, dst=str(ADDRESS), tos=TAG) / UDP(dport=80), False, False),
    (
        "tcp cut in the ports",
        IP(src=CLIENT, dst=str(ADDRESS), tos=TAG, proto=6) / Raw(b"\x9c\x40\x00"),
        False,
        False,
    ),
    ("ping", IP(src=CLIENT, dst=str(ADDRESS), tos=TAG) / ICMP(), False, False),
    ("fragmentation needed about the VIP", _error(3, _quoted()), True, False),
    ("time exceeded about the VIP", _error(11, _quoted()), True, False),
    ("parameter problem about the VIP", _error(12, _quoted()), True, False),
    ("source quench about the VIP", _error(4, _quoted()), False, False),
    ("error behind ip options", _error(3, _quoted(), options=_NOPS), True, False),
    ("first fragment of an error", _error(3, _quoted(), flags=MORE_FRAGMENTS) / Raw(bytes(4)), True, False),
    ("error about another port", _error(3, _quoted(port=22)), False, False),
    ("tagged error about another port", _error(3, _quoted(_VIP, 22), tos=TAG), False, False),
    ("tagged error about the address itself", _error(3, _quoted(), tos=TAG), True, False),
    ("tagged error about a VIP", _error(3, _quoted(_VIP), tos=TAG), False, True),
    ("tagged error about a second VIP", _error(11, _quoted(_VIP, 8080), tos=TAG), False, True),
    ("untagged error about a VIP", _error(3, _quoted(_VIP)), False, False),
    ("error about udp", _error(3, _quoted(proto=17)), False, False),
    ("error about a later fragment", _error(3, _quoted(frag=1)), False, False),
    ("error about a packet with ip options", _error(3, _quoted(options=_NOPS)), False, False),
    ("error cut before the ports", _error(3, IPerror(src=str(ADDRESS), dst=CLIENT, proto=6)), False, False),
]

CASES = [Case(name, bytes(packet), *taken) for name, packet, *taken in _PACKETS]
