"""The parts of common.net that only a kernel can judge, in namespaces of their own."""

import json
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP

from common.net import intake
from common.net.buffer import IP_AT, new_buffer
from common.net.errors import HostError
from common.net.intake import Intake
from common.net.interfaces import Interface, LinkType, interface_of, interfaces, tap_interfaces
from common.net.ownership import OwnedTable, drop_rules, table_name
from common.net.packet_socket import Tap
from common.net.routes import ReplyRoutes, remove_leftovers, route_mtu
from common.net.tun import Tun
from tests.root.namespaces import CLIENT, CLIENT_MAC, MIDDLE, MIDDLE_MAC, SERVER, Hosts, three_hosts
from tests.unit.net.intake_cases import BALANCER, CASES, PACKETBRIDGE

pytestmark = pytest.mark.root

PORT = 9000
MOMENT_SECONDS = 0.3
SERVICE = intake.of_balancer(SERVER, PORT)
ETHERNET = MIDDLE_MAC + CLIENT_MAC + b"\x08\x00"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


def own(taken: Intake, *tapped: Interface) -> OwnedTable:
    return OwnedTable(taken.name, drop_rules(taken, tapped))


def drain(port: Tap | Tun, buffer: bytearray) -> Iterator[bytes]:
    """The packets that come to the port within a moment, those that are no good left out."""
    while select.select([port], [], [], MOMENT_SECONDS)[0]:
        length = port.receive_into(buffer)
        if length:
            yield bytes(buffer[IP_AT : IP_AT + length])


def identified(packet: bytes, identification: int) -> bytes:
    changed = IP(packet)
    changed.id = identification
    del changed.chksum
    return bytes(changed)


@pytest.fixture
def wire(hosts: Hosts) -> Iterator[socket.socket]:
    """Sends frames from the client to the middle's m0."""
    with hosts.client.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sender.bind(("c0", 0))
    with sender:
        yield sender


@pytest.mark.parametrize("taken", [BALANCER, PACKETBRIDGE], ids=["balancer", "packetbridge"])
def test_tap_and_owner_table_divide_the_packets_between_daemon_and_kernel(
    hosts: Hosts, wire: socket.socket, taken: Intake
) -> None:
    expected = {
        at for at, case in enumerate(CASES) if (case.by_packetbridge if taken.tagged else case.by_balancer)
    }
    hosts.middle.run("nft add table ip seen")
    hosts.middle.run("nft add set ip seen ids { typeof ip id ; flags dynamic ; }")
    hosts.middle.run("nft add chain ip seen early { type filter hook prerouting priority -450 ; }")
    hosts.middle.run("nft add rule ip seen early update @ids { ip id }")
    with hosts.middle.entered():
        interface = interface_of(MIDDLE, interfaces())
        tap, table = Tap(interface, taken), own(taken, interface)
    for at, case in enumerate(CASES):
        wire.send(ETHERNET + identified(case.packet, at))
    received = {IP(packet).id: packet for packet in drain(tap, new_buffer())}
    listing = json.loads(hosts.middle.run("nft -j list set ip seen ids"))
    left = set(listing["nftables"][1]["set"]["elem"])
    table.close()
    tap.close()
    assert set(received) == expected
    assert left == set(range(len(CASES))) - expected
    assert all(packet == identified(CASES[at].packet, at) for at, packet in received.items())


def test_tap_leaves_other_hosts_and_vlans_but_takes_priority_tags(hosts: Hosts, wire: socket.socket) -> None:
    packet = bytes(IP(src=str(CLIENT), dst=str(MIDDLE)) / TCP(sport=40000, dport=80))
    other_host = bytes.fromhex("02000a6201ff") + ETHERNET[6:]
    hosts.middle.run("ip link set m0 promisc on")
    with hosts.middle.entered():
        tap = Tap(interface_of(MIDDLE, interfaces()), BALANCER)
    wire.send(other_host + identified(packet, 1))
    wire.send(ETHERNET[:12] + b"\x81\x00\x00\x0a\x08\x00" + identified(packet, 2))
    wire.send(ETHERNET[:12] + b"\x81\x00\xa0\x00\x08\x00" + identified(packet, 3))
    wire.send(ETHERNET + identified(packet, 4))
    received = list(drain(tap, new_buffer()))
    tap.close()
    assert received == [identified(packet, 3), identified(packet, 4)]


def test_tap_counts_a_packet_that_is_not_whole(hosts: Hosts, wire: socket.socket) -> None:
    packet = bytes(IP(src=str(CLIENT), dst=str(MIDDLE)) / TCP(sport=40000, dport=80))
    with hosts.middle.entered():
        tap = Tap(interface_of(MIDDLE, interfaces()), BALANCER)
    wire.send(ETHERNET + packet[:-4])
    wire.send(ETHERNET + packet + bytes(6))
    received = list(drain(tap, new_buffer()))
    tap.close()
    assert (received, tap.malformed) == ([packet], 1)


def test_tap_survives_its_interface_going_down_and_up(hosts: Hosts, wire: socket.socket) -> None:
    packet = bytes(IP(src=str(CLIENT), dst=str(MIDDLE)) / TCP(sport=40000, dport=80))
    with hosts.middle.entered():
        tap = Tap(interface_of(MIDDLE, interfaces()), BALANCER)
    hosts.middle.run("ip link set m0 down")
    assert list(drain(tap, new_buffer())) == []
    assert tap.errors == 1
    hosts.middle.run("ip link set m0 up")
    wire.send(ETHERNET + packet)
    received = list(drain(tap, new_buffer()))
    tap.close()
    assert received == [packet]


def test_rules_of_an_owner_table_are_replaced_as_a_whole_or_not_at_all(hosts: Hosts) -> None:
    other = intake.of_balancer(MIDDLE, 81)
    with hosts.middle.entered():
        interface = interface_of(MIDDLE, interfaces())
        table = own(BALANCER, interface)
        before = hosts.middle.run("nft list ruleset")
        with pytest.raises(HostError, match="refuses to change the table"):
            table.replace(drop_rules(other, [interface]) + "chain prerouting { rubbish; }")
        assert hosts.middle.run("nft list ruleset") == before
        table.replace(drop_rules(other, [interface]))
        changed = hosts.middle.run("nft list ruleset")
        table.replace("")
        emptied = hosts.middle.run("nft list ruleset")
        table.close()
        assert hosts.middle.run("nft list tables") == ""
    assert "tcp dport 80 drop" in before
    assert "tcp dport 81 drop" in changed
    assert "tcp dport 80" not in changed
    assert "drop" not in emptied


def test_tap_counts_what_the_kernel_drops(hosts: Hosts, wire: socket.socket) -> None:
    packet = bytes(IP(src=str(CLIENT), dst=str(MIDDLE)) / TCP(sport=40000, dport=80) / bytes(1000))
    with hosts.middle.entered():
        tap = Tap(interface_of(MIDDLE, interfaces()), BALANCER, receive_buffer_bytes=1 << 14)
    for _ in range(100):
        wire.send(ETHERNET + packet)
    received = len(list(drain(tap, new_buffer())))
    drops = tap.kernel_drops(), tap.kernel_drops()
    tap.close()
    assert 0 < received < 100
    assert drops == (100 - received, 100 - received)


def test_interfaces_and_mtus_are_found_from_addresses(hosts: Hosts) -> None:
    hosts.client.run("ip link set c0 mtu 1400")
    hosts.client.run("ip route add 10.98.3.0/24 via 10.98.1.2 mtu 1280")
    with hosts.client.entered():
        found = interface_of(CLIENT, interfaces())
        assert (found.name, found.link_type, found.mtu) == ("c0", LinkType.ETHERNET, 1400)
        assert tap_interfaces(interfaces()) == [found]
        assert route_mtu(SERVER) == 1400
        assert route_mtu(IPv4Address("10.98.3.9")) == 1280
        with pytest.raises(HostError, match=r"no route to 10\.99\.0\.1 \(Network is unreachable\)"):
            route_mtu(IPv4Address("10.99.0.1"))


def settings(hosts: Hosts) -> set[str]:
    """All network settings of the client's host, those of our TUNs left out."""
    return {
        line
        for line in hosts.client.run("sysctl -a --pattern ^net.ipv[46]").splitlines()
        if "l3dsr" not in line
    }


def test_tun_is_set_up_without_touching_the_rest_of_the_host(hosts: Hosts) -> None:
    hosts.client.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.disable_ipv6=0")
    with hosts.client.entered():
        before = settings(hosts)
        tun = Tun()
        own_settings = Path("/proc/sys/net/ipv4/conf") / tun.name
        assert {n: (own_settings / n).read_text() for n in ("forwarding", "accept_local", "rp_filter")} == {
            "forwarding": "1\n",
            "accept_local": "1\n",
            "rp_filter": "0\n",
        }
        (link,) = json.loads(hosts.client.run(f"ip -j -d address show dev {tun.name}"))
        found = next(interface for interface in interfaces() if interface.index == tun.index)
        assert (found.name, found.mtu, found.is_up, found.link_type) == (tun.name, 65535, True, LinkType.NONE)
        assert (link["txqlen"], link["addr_info"]) == (10000, [])
        assert link["linkinfo"]["info_data"]["persist"] is False
        after = settings(hosts)
        tun.close()
        assert tun.name not in {interface.name for interface in interfaces()}
    assert tun.name.startswith("l3dsr")
    assert before == after
    assert "net.ipv4.conf.c0.forwarding = 0" in before


def test_tun_counts_bad_packets_and_goes_on(hosts: Hosts) -> None:
    packet = bytes(IP(src=str(CLIENT), dst=str(SERVER)) / TCP(sport=40000, dport=PORT))
    with hosts.client.entered():
        tun = Tun()
        tap_on_tun = Tap(next(i for i in interfaces() if i.index == tun.index), SERVICE)
    tun.send_packet(b"\x00" + packet[1:])
    tun.send_packet(packet, struct.pack("=BBHHHH", 1, 0, 0, 0, 1000, 16))
    hosts.client.run(f"ip link set {tun.name} down")
    tun.send_packet(packet)
    refused = dict(tun.refused)
    hosts.client.run(f"ip link set {tun.name} up")
    assert tap_on_tun.receive_into(new_buffer()) == 0
    tun.send_packet(packet)
    received = list(drain(tap_on_tun, new_buffer()))
    tap_on_tun.close()
    hosts.client.run(f"ip link delete {tun.name}")
    with pytest.raises(HostError, match=f"device {tun.name} has been deleted"):
        tun.send_packet(packet)
    tun.close()
    assert refused == {22: 2, 5: 1}
    assert received == [packet]


def test_second_owner_is_refused_and_the_table_goes_with_the_first(hosts: Hosts) -> None:
    with hosts.middle.entered():
        interface = interface_of(MIDDLE, interfaces())
        first = own(BALANCER, interface)
        with pytest.raises(HostError, match=r"^VIP 10\.98\.1\.2:80 is already served by another process$"):
            own(BALANCER, interface)
        beside = own(PACKETBRIDGE, interface)
        hosts.middle.run("nft flush ruleset")
        assert hosts.middle.run("nft list tables").splitlines() == [
            "table ip l3dsr_vip_10_98_1_2_80",
            "table ip l3dsr_bridge_address_10_98_1_2",
        ]
        first.close()
        beside.close()
        assert hosts.middle.run("nft list tables") == ""
        hosts.middle.run(f"nft add table ip {table_name(BALANCER.name)}")
        with pytest.raises(HostError, match="run `nft delete table ip l3dsr_vip_10_98_1_2_80`"):
            own(BALANCER, interface)


def serve(role: str, backend: str) -> None:
    """Hold all that a packetbridge holds until killed."""
    tun = Tun()
    ReplyRoutes([(IPv4Address(backend), PORT)], tun.index)
    interface = interface_of(MIDDLE, interfaces())
    taken = intake.of_packetbridge(MIDDLE, [PORT]) if role == "packetbridge" else BALANCER
    table = own(taken, interface)
    print("ready", tun.name, flush=True)
    signal.pause()
    table.close()


@contextmanager
def serving(hosts: Hosts, role: str, backend: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, killed at the end, and the name of its TUN."""
    command = f"from tests.root.test_net import serve; serve({role!r}, {backend!r})"
    with hosts.middle.entered():
        process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout
            word, name = process.stdout.readline().split()
            assert word == "ready"
            yield process, name
        finally:
            process.kill()


def test_killed_process_leaves_only_rules_that_the_next_start_removes(hosts: Hosts) -> None:
    with (
        serving(hosts, "packetbridge", "10.98.2.2") as (killed, killed_tun),
        serving(hosts, "balancer", "10.98.2.3") as (_, living_tun),
    ):
        assert {killed_tun, living_tun} <= names(hosts)
        (living_table,) = (
            route["table"]
            for route in json.loads(hosts.middle.run("ip -j route show table all"))
            if route["dev"] == living_tun
        )
        killed.kill()
        killed.wait(timeout=10)
        assert killed_tun not in names(hosts)
        assert hosts.middle.run("nft list tables").splitlines() == [
            "table ip l3dsr_backend_10_98_2_3_9000",
            "table ip l3dsr_vip_10_98_1_2_80",
        ]
        assert len(rule_tables(hosts)) == 2
        with hosts.middle.entered():
            assert remove_leftovers() == 1
            assert remove_leftovers() == 0
        assert rule_tables(hosts) == [living_table]


def names(hosts: Hosts) -> set[str]:
    with hosts.middle.entered():
        return {interface.name for interface in interfaces()}


def rule_tables(hosts: Hosts) -> list[str]:
    """Tables of the policy rules with our priority."""
    return [r["table"] for r in json.loads(hosts.middle.run("ip -j rule")) if r["priority"] == 100]


def footprint(hosts: Hosts) -> list[str]:
    return [hosts.server.run(show) for show in ("ip rule", "ip route show table all", "nft list ruleset")]


def test_reply_routes_take_one_port_only_and_leave_nothing(hosts: Hosts) -> None:
    backends = [(SERVER, PORT), (SERVER, PORT + 1)]
    with hosts.server.entered():
        before = footprint(hosts)
        tun = Tun()
        with_tun = footprint(hosts)
        routes = ReplyRoutes(backends, tun.index)
        serving = footprint(hosts)
        answered = [reset_by(hosts, PORT), reset_by(hosts, PORT + 1), reset_by(hosts, PORT + 2, 20.0)]
        taken = [struct.unpack_from(">H", packet, 20)[0] for packet in drain(tun, new_buffer())]
        second = Tun()
        with pytest.raises(HostError, match=r"^backend 10\.98\.2\.2:9001 is already served by another"):
            ReplyRoutes([(IPv4Address("10.98.2.9"), 80), (SERVER, PORT + 1)], second.index)
        second.close()
        assert footprint(hosts) == serving
        routes.close()
        assert footprint(hosts) == with_tun
        routes.close()
        tun.close()
        assert footprint(hosts) == before
    assert answered == [False, False, True]
    assert set(taken) == {PORT, PORT + 1}


def reset_by(hosts: Hosts, port: int, seconds: float = 0.5) -> bool:
    """Whether the server's RST for a port without listener comes back to the client in time."""
    with hosts.client.entered():
        client = socket.socket()
    with client:
        client.settimeout(seconds)
        try:
            client.connect((str(SERVER), port))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    raise AssertionError("nobody listens there")
