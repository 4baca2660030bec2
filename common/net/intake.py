"""Which packets a daemon takes off the host.

Said once here and enforced twice: the tap's filter (`cbpf`) lets exactly these packets up to the daemon, and
the owner table (`ownership`) drops exactly these in the kernel, so that nothing is answered twice.

Taken are, of the unfragmented packets and first fragments to `address`:

- TCP to one of `ports`, with or without IP options;
- ICMP errors that quote a TCP packet whose source port is one of `ports`. They concern us if the quoted
  source is the VIP. A balancer's `address` is the VIP; errors come to a packetbridge from its balancer, and
  the quoted source is anything but its own `address`: errors about the host's own packets are the kernel's.

A packetbridge (`tagged`) takes only packets with a DSCP other than 0. Later fragments stay in the kernel,
whose reassembly gives them up after a while.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from common.wire import icmp

ICMP_ERRORS = (icmp.UNREACHABLE, icmp.TIME_EXCEEDED, icmp.PARAMETER_PROBLEM)


@dataclass(frozen=True, slots=True)
class Intake:
    address: IPv4Address
    ports: tuple[int, ...] | range
    """Ascending, each once; a range has step 1."""
    tagged: bool
    name: str
    """Two daemons on one host that would take the same packets have the same name."""


def of_balancer(vip: IPv4Address, port: int) -> Intake:
    return Intake(vip, (port,), tagged=False, name=f"VIP {vip}:{port}")


def of_health_checks(address: IPv4Address, ports: range) -> Intake:
    """``address`` is the host's own, from which nodes are checked."""
    return Intake(address, ports, tagged=False, name=f"health check source {address}")


def of_packetbridge(bridge: IPv4Address, ports: Iterable[int]) -> Intake:
    """``ports`` are the service ports of all VIPs."""
    return Intake(bridge, tuple(sorted(set(ports))), tagged=True, name=f"bridge address {bridge}")
