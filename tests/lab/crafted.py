"""Packets that no kernel would send, and a TCP client of which the test makes every segment.

The client has an address of its own, of which the client host's kernel sees no packet, so that nothing but
the test answers. It knows no options, keeps no clock and acknowledges what comes in order.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Self

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet, Raw

from lab import Host, Lab, LabError
from lab.process import POLL_SECONDS
from tests.lab.conversation import VIP_ADDRESS
from tests.lab.sockets import PATIENCE_SECONDS, socket_in

GHOST = "198.51.100.77"
_ETH_P_IP = 0x0800
_RETRANSMISSION_SECONDS = 0.5
_MODULUS = 1 << 32
_HIDE = f"""
table ip ghost {{
    chain prerouting {{
        type filter hook prerouting priority -500; policy accept;
        ip daddr {GHOST} drop
    }}
}}
"""


class Line:
    """Out of a host's interface to the other end of its link. What is sent goes as it is."""

    def __init__(self, host: Host, interface: str, target: Host, target_interface: str) -> None:
        address = target.run(["cat", f"/sys/class/net/{target_interface}/address"]).stdout
        self._target = (interface, _ETH_P_IP, 0, 0, bytes.fromhex(address.strip().replace(":", "")))
        self._socket = socket_in(host, socket.AF_PACKET, socket.SOCK_DGRAM)

    def send(self, packet: bytes) -> None:
        """Waits while the interface's queue is full."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._socket.sendto(packet, self._target)
            except OSError as error:
                if error.errno != errno.ENOBUFS or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return

    def close(self) -> None:
        self._socket.close()


@contextmanager
def line_to(lab: Lab, name: str) -> Iterator[Line]:
    """Out of the router straight to a host: what no router would pass on arrives as well."""
    with closing(Line(lab.router, name, lab.hosts[name], "eth0")) as line:
        yield line


class CraftedClient:
    """A connection from GHOST to a VIP."""

    def __init__(self, lab: Lab, port: int, *, vip: str = VIP_ADDRESS, isn: int = 0x1000_0000) -> None:
        self.port = port
        self.vip = vip
        self.isn = isn
        self.vip_isn = 0
        self.next = isn
        """The sequence number of what is said next."""
        self.expected = 0
        """The one of what comes next."""
        self.window = 65535
        self._line = Line(lab.client, "eth0", lab.router, "client")
        self._tap = socket_in(lab.client, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._tap.close()

    def segment(self, flags: str, payload: bytes = b"", **changes: Any) -> Packet:
        """``changes`` are fields of TCP, by scapy's names."""
        acknowledged = self.expected if "A" in flags else 0
        fields: dict[str, Any] = {"seq": self.next, "ack": acknowledged, "window": self.window}
        header = TCP(sport=self.port, dport=80, flags=flags, **{**fields, **changes})
        header.seq, header.ack = header.seq % _MODULUS, header.ack % _MODULUS
        found = IP(src=GHOST, dst=self.vip, flags="DF", id=0) / header
        return found / Raw(payload) if payload else found

    def send(self, packet: Packet | bytes) -> None:
        self._line.send(bytes(packet))

    def receive(self, seconds: float = PATIENCE_SECONDS) -> Packet | None:
        """The next segment that comes for this connection; None where there is none in time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._tap.settimeout(left)
            try:
                packet = IP(self._tap.recv(1 << 17))
            except TimeoutError:
                return None
            if packet.dst == GHOST and TCP in packet and packet[TCP].dport == self.port:
                return packet
        return None

    def receive_such(self, condition: Callable[[Packet], bool], seconds: float = PATIENCE_SECONDS) -> Packet:
        """The next segment for which it holds; others are skipped. Raises LabError where none comes."""
        deadline = time.monotonic() + seconds
        while (packet := self.receive(deadline - time.monotonic())) is not None:
            if condition(packet):
                return packet
        raise LabError(f"no such segment within {seconds} s")

    def shake_hands(self) -> Packet:
        """The SYN-ACK."""
        self.send(self.segment("S"))
        syn_ack = self.receive_such(lambda packet: str(packet[TCP].flags) == "SA")
        self.next = (self.isn + 1) % _MODULUS
        self.vip_isn = syn_ack[TCP].seq
        self.expected = (self.vip_isn + 1) % _MODULUS
        self.send(self.segment("A"))
        return syn_ack

    def say(self, payload: bytes) -> None:
        self.send(self.segment("PA", payload))
        self.next = (self.next + len(payload)) % _MODULUS

    def hear(self, again: Packet | None = None) -> bytes:
        """One response, acknowledged; ``again`` is repeated as long as nothing of it comes."""
        heard = b""
        while not _is_whole(heard):
            packet = self.receive(_RETRANSMISSION_SECONDS if again and not heard else PATIENCE_SECONDS)
            if packet is None:
                if again is None or heard:
                    raise LabError(f"no more came after {heard[-200:]!r}")
                self.send(again)
                continue
            flags = packet[TCP].flags
            if flags.R:
                raise ConnectionResetError(f"by segment {packet.summary()}")
            payload = payload_of(packet)
            if payload and packet[TCP].seq == self.expected:
                heard += payload
                self.expected = (self.expected + len(payload)) % _MODULUS
                self.send(self.segment("A"))
        return heard

    def ask(self, target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
        """The whole response, from an HTTP connection that stays."""
        lines = [f"{method} {target} HTTP/1.1", "Host: lab", f"Content-Length: {len(body)}", *fields]
        said = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body
        first = self.segment("PA", said)
        self.say(said)
        return self.hear(first)


@contextmanager
def ghost(lab: Lab) -> Iterator[None]:
    """GHOST exists for the router, and the client's kernel answers nothing for it."""
    host = lab.client
    host.run(["nft", "-f", "-"], input=_HIDE)
    host.run(["ip", "address", "add", f"{GHOST}/32", "dev", "eth0"])
    try:
        yield
    finally:
        host.run(["ip", "address", "delete", f"{GHOST}/32", "dev", "eth0"])
        host.run(["nft", "delete", "table", "ip", "ghost"])


def payload_of(packet: Packet) -> bytes:
    """Without padding of the link."""
    return bytes(packet)[packet.ihl * 4 + packet[TCP].dataofs * 4 : packet.len]


def internet_checksum(header: bytearray) -> bytes:
    """RFC 1071, over a header whose checksum field is 0."""
    total = sum(int.from_bytes(header[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(header), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def _is_whole(heard: bytes) -> bool:
    head, found, body = heard.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name == b"Content-Length":
            return len(body) >= int(value)
    return body.endswith(b"0\r\n\r\n")
