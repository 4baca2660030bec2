"""Taps that follow interfaces which come and go, in namespaces."""

import select
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from common.net import intake
from common.net.buffer import IP_AT, new_buffer
from common.net.interfaces import Interface, interfaces
from common.net.packet_socket import Tap
from common.net.taps import Taps, wanted
from tests.root.namespaces import MIDDLE, Hosts, three_hosts

pytestmark = pytest.mark.root

PORT, OTHER_PORT = 9000, 9001
NO_TUN = 0


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """The test's thread is in the middle one."""
    with three_hosts() as hosts, hosts.middle.entered():
        yield hosts


class Tapped:
    def __init__(self, ports: list[int]) -> None:
        self.open: list[Tap] = []
        self.taps = Taps(intake.of_packetbridge(MIDDLE, ports), self.open.append, self.open.remove)

    def follow(self) -> list[str]:
        return self.taps.follow(wanted(interfaces(), self.taps.interfaces, NO_TUN))

    def names(self) -> list[str]:
        return [interface.name for interface in self.taps.interfaces]

    def ports(self, *, any_is_to_come: bool = False) -> list[int]:
        """Destination ports of all packets that come within a moment."""
        buffer = new_buffer()
        found: list[int] = []
        while ready := select.select(self.open, [], [], 10 if any_is_to_come and not found else 0.2)[0]:
            if ready[0].receive_into(buffer):
                found.append(int.from_bytes(buffer[IP_AT + 22 : IP_AT + 24], "big"))
        return found


def knock(hosts: Hosts, port: int) -> None:
    """A SYN with DSCP 1."""
    with hosts.client.entered(), socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 1 << 2)
        client.setblocking(False)
        client.connect_ex((str(MIDDLE), port))


def test_interfaces_are_tapped_that_carry_addresses(hosts: Hosts) -> None:
    tapped = Tapped([PORT])
    with closing(tapped.taps):
        assert tapped.follow() == [
            "interface m0 is there: it is tapped",
            "interface m1 is there: it is tapped",
        ]
        assert tapped.follow() == []
        knock(hosts, PORT)
        assert tapped.ports(any_is_to_come=True)[:1] == [PORT]
    assert tapped.open == []


def test_tap_stays_where_its_interface_is_down_or_has_no_address_at_the_moment(hosts: Hosts) -> None:
    tapped = Tapped([PORT])
    with closing(tapped.taps):
        tapped.follow()
        hosts.middle.run("ip link set m0 down")
        hosts.middle.run("ip address flush dev m1")
        assert tapped.follow() == []
        tapped.ports()  # what a tap says of an interface that has gone down
        hosts.middle.run("ip link set m0 up")
        knock(hosts, PORT)
        assert tapped.ports(any_is_to_come=True)[:1] == [PORT]


def test_interface_that_is_made_again_under_the_same_index_is_tapped_again(hosts: Hosts) -> None:
    tapped = Tapped([PORT])
    with closing(tapped.taps):
        tapped.follow()
        index = socket.if_nametoindex("m0")
        hosts.middle.run("ip link del m0")
        hosts.middle.run(f"ip link add m0 index {index} type veth peer name c0 netns {hosts.client.name}")
        hosts.client.run("ip address add 10.98.1.1/24 dev c0")
        hosts.middle.run("ip address add 10.98.1.2/24 dev m0")
        for host, interface in ((hosts.client, "c0"), (hosts.middle, "m0")):
            host.run(f"ip link set {interface} up")
        assert tapped.follow() == [
            "interface m0 has gone: it is tapped no more",
            "interface m0 is there: it is tapped",
        ]
        knock(hosts, PORT)
        assert tapped.ports(any_is_to_come=True)[:1] == [PORT]


def test_interface_that_is_gone_is_tapped_no_more_and_what_it_counted_stays(hosts: Hosts) -> None:
    tapped = Tapped([PORT])
    with closing(tapped.taps):
        tapped.follow()
        hosts.middle.run("ip link set m0 down")
        tapped.ports()
        counted = tapped.taps.errors
        hosts.middle.run("ip link del m0")
        assert tapped.follow() == ["interface m0 has gone: it is tapped no more"]
        assert tapped.names() == ["m1"]
        assert tapped.taps.errors >= counted > 0


def test_interface_that_joins_a_bridge_is_tapped_there(hosts: Hosts) -> None:
    tapped = Tapped([PORT])
    with closing(tapped.taps):
        tapped.follow()
        hosts.middle.run("ip link add br0 type bridge")
        hosts.middle.run("ip address del 10.98.1.2/24 dev m0")
        hosts.middle.run("ip link set m0 master br0")
        hosts.middle.run("ip address add 10.98.1.2/24 dev br0")
        hosts.middle.run("ip link set br0 up")
        tapped.follow()
        assert sorted(tapped.names()) == ["br0", "m1"]


def test_other_ports_are_taken_from_one_moment_to_the_next(hosts: Hosts) -> None:
    tapped = Tapped([PORT])
    with closing(tapped.taps):
        tapped.follow()
        knock(hosts, OTHER_PORT)
        assert tapped.ports() == []
        tapped.taps.take(intake.of_packetbridge(MIDDLE, [OTHER_PORT]))
        knock(hosts, PORT)
        knock(hosts, OTHER_PORT)
        assert set(tapped.ports(any_is_to_come=True)) == {OTHER_PORT}


def test_interface_of_a_link_type_that_is_not_known_is_named_once() -> None:
    tapped = Tapped([PORT])
    strange = Interface(99, "ib0", 32, 2044, True, False, False, 0, (MIDDLE,))
    with closing(tapped.taps):
        (said,) = tapped.taps.follow([strange])
        assert said.startswith("interface ib0 has link type 32, which cannot be tapped")
        assert tapped.taps.follow([strange]) == []
        assert tapped.open == []
