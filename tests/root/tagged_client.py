"""A client and its balancer in one: it sends handoffs and tagged segments, and hears the VIP."""

import socket
import time
from ipaddress import IPv4Address

from common.keyring import insecure
from common.wire import handoff, segment, seq, tcp
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.segment import Segment

_ALL_PROTOCOLS = 3
_MOST_BYTES = 65_536
_LINK_HEADER = 14
_AGAIN_SECONDS = 0.2
CLIENT_ISN, BALANCER_ISN = 1_000_000, 3_000_000_000


class TaggedClient:
    """Of the network namespace in which it is made; owns its sockets."""

    def __init__(self, interface: str, address: IPv4Address, node: IPv4Address) -> None:
        self.address, self.node = address.packed, node.packed
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        self._tap.bind((interface, _ALL_PROTOCOLS))
        self._tap.settimeout(_AGAIN_SECONDS / 4)

    def close(self) -> None:
        self._sender.close()
        self._tap.close()

    def connection(self, vip: IPv4Address, port: int, *, vip_port: int = 80, index: int = 1) -> "Connection":
        """``port`` is the client's."""
        return Connection(self, vip.packed, vip_port, port, index)

    def send(self, sent: Segment) -> None:
        data = segment.emit(sent).data
        try:
            self._sender.sendto(data, (str(IPv4Address(self.node)), 0))
        except OSError:  # the interface is down: that is a loss as any other
            time.sleep(_AGAIN_SECONDS / 4)

    def heard(self, vip: bytes, ports: tuple[int, int]) -> Segment | None:
        """The next segment as the VIP, or None after a moment."""
        try:
            packet = self._tap.recv(_MOST_BYTES)[_LINK_HEADER:]
        except OSError:
            return None
        if len(packet) < 40 or packet[9] != socket.IPPROTO_TCP or packet[12:16] != vip:
            return None
        if (int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")) != ports:
            return None
        return segment.parse_untrusted(Packet(packet[: int.from_bytes(packet[2:4], "big")]))


class Connection:
    """Without options; every segment is repeated until the answer is there."""

    def __init__(self, client: TaggedClient, vip: bytes, vip_port: int, port: int, index: int) -> None:
        self._client = client
        self._vip, self._vip_port, self._port, self._index = vip, vip_port, port, index
        self._sent, self._got = seq.add(CLIENT_ISN, 1), seq.add(BALANCER_ISN, 1)

    def ask(self, payload: bytes, patience: float = 20.0) -> bytes:
        """What the server answers. `TimeoutError`, or `ConnectionResetError` for a RST as the VIP."""
        asked = self._first(payload) if self._sent == seq.add(CLIENT_ISN, 1) else self._data(payload)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            self._client.send(asked)
            again = time.monotonic() + _AGAIN_SECONDS
            while time.monotonic() < again:
                came = self._client.heard(self._vip, (self._vip_port, self._port))
                if came is None:
                    continue
                if came.flags & tcp.RST:
                    raise ConnectionResetError
                if came.payload and came.seq == self._got:
                    self._sent = seq.add(self._sent, len(payload))
                    self._got = seq.add(self._got, len(came.payload))
                    return came.payload
        raise TimeoutError

    def close(self, patience: float = 20.0) -> None:
        """FIN both ways."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            self._client.send(self._data(b"")._replace(flags=tcp.ACK | tcp.FIN))
            came = self._client.heard(self._vip, (self._vip_port, self._port))
            if came is not None and came.flags & tcp.FIN:
                self._sent, self._got = seq.add(self._sent, 1), seq.add(came.seq, 1 + len(came.payload))
                self._client.send(self._data(b""))
                return
        raise TimeoutError

    def acknowledge(self) -> None:
        """All that has come so far."""
        self._client.send(self._data(b""))

    def reset(self) -> None:
        self._client.send(self._data(b"")._replace(flags=tcp.RST))

    def _data(self, payload: bytes) -> Segment:
        return Segment(
            source=self._client.address,
            destination=self._client.node,
            source_port=self._port,
            destination_port=self._vip_port,
            seq=self._sent,
            ack=self._got,
            flags=tcp.ACK | tcp.PSH if payload else tcp.ACK,
            window=64_240,
            payload=payload,
            tos=self._index << 2,
        )

    def _first(self, payload: bytes) -> Segment:
        offered = Handoff(
            client=self._client.address,
            node=self._client.node,
            client_port=self._port,
            service_port=self._vip_port,
            vip_index=self._index,
            seq=CLIENT_ISN,
            ack=BALANCER_ISN,
            window=64_240,
            mss=1400,
            window_scale=None,
            sack_permitted=False,
            timestamps=None,
            promised_scale=0,
            fin=False,
            time=handoff.time_of(int(time.time())),
            key_id=0,
            tag=bytes(8),
            ecn=0,
            payload=payload,
        )
        return handoff.emit(insecure().sign(offered))
