"""Run as a module on the lab's router: OBJECT INTERFACE ADDRESS PORT PER_SECOND SECONDS.

SYNs for PORT of ADDRESS arrive at INTERFACE for SECONDS, PER_SECOND of them or as many as the machine makes,
each of a spoofed address of 198.18.0.0/15. The kernel makes them (BPF_PROG_TEST_RUN with live frames), so
that nobody has to send them. Prints `flooding` when the first one has come, and in the end, which SIGTERM may
bring early, `sent COUNT in SECONDS`.
"""

import ctypes
import os
import signal
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

from common.bpf import libbpf
from common.bpf.objects import BpfObject
from common.wire import ipv4, tcp, tcp_options
from common.wire.tcp_options import Option

FIRST_ADDRESS = IPv4Address("198.18.0.0")
LIVE_FRAMES = 1 << 1
ATTACH_XDP = 37
"""BPF_XDP of enum bpf_attach_type."""
BATCH = 64
TICK_SECONDS = 0.002
PRIORITY = 1
"""Before all ordinary processes: a flood does not wait for those that it floods."""
AT_ONCE = 4096
"""The most that come without a pause."""
ETHERTYPE = b"\x08\x00"
LINK_SIZE = 14
CLIENT_MAC = bytes.fromhex("020000000001")
PORT, WINDOW, TTL = 1024, 64240, 64


class Flood:
    def __init__(self, path: Path, interface: str, address: IPv4Address, port: int) -> None:
        self.sent = 0
        frame = _mac_of(interface) + CLIENT_MAC + ETHERTYPE + unsummed_syn(address, port)
        self._loaded = load(path, frame)
        self._program = self._loaded.program("flood")
        self._keep_dispatched()
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        self._context = (ctypes.c_uint32 * 6)(0, len(frame), 0, _index_of(interface), 0, 0)

    def send(self, count: int) -> None:
        options = libbpf.TestRunOptions(
            data_in=ctypes.addressof(self._frame),
            data_size_in=len(self._frame),
            ctx_in=ctypes.addressof(self._context),
            ctx_size_in=ctypes.sizeof(self._context),
            repeat=count,
            flags=LIVE_FRAMES,
            batch_size=BATCH,
        )
        libbpf.check(libbpf.library().bpf_prog_test_run_opts(self._program, options))
        self.sent += count

    def _keep_dispatched(self) -> None:
        """Otherwise the kernel makes a direct call of the program at the begin of each run and takes it back
        at the end, and waits for a grace period both times. Nothing crosses the loopback interface here.
        """
        loopback = _index_of("lo")
        libbpf.check(libbpf.library().bpf_link_create(self._program, loopback, ATTACH_XDP, None))


def load(path: Path, frame: bytes) -> BpfObject:
    """Its program `flood` makes of every packet this ``frame``, but for the client."""
    link, syn = frame[:LINK_SIZE], frame[LINK_SIZE:]
    return BpfObject(path, constants={"link": link, "syn": syn, "first_address": int(FIRST_ADDRESS)})


def unsummed_syn(address: IPv4Address, port: int) -> bytes:
    """As Linux's, with the usual options, and without checksums."""
    options = (
        Option(tcp_options.MSS, (1460).to_bytes(2, "big")),
        Option(tcp_options.SACK_PERMITTED),
        Option(tcp_options.TIMESTAMPS, bytes(8)),
        Option(tcp_options.NOP),
        Option(tcp_options.WINDOW_SCALE, bytes([7])),
    )
    made = tcp.emit(tcp.TcpHeader(PORT, port, 0, 0, tcp.SYN, WINDOW, 0, 0, tcp_options.emit(options)))
    header = ipv4.Ipv4Header(
        tos=0,
        total_length=ipv4.HEADER_SIZE + len(made),
        identification=0,
        fragment=ipv4.DONT_FRAGMENT,
        ttl=TTL,
        protocol=ipv4.PROTOCOL_TCP,
        checksum=0,
        source=FIRST_ADDRESS.packed,
        destination=address.packed,
    )
    return ipv4.emit(header) + made


def _mac_of(interface: str) -> bytes:
    return bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().replace(":", ""))


def _index_of(interface: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/ifindex").read_text())


def run(flood: Flood, per_second: int, seconds: float) -> None:
    """What could not be sent in time is not made up for."""
    earlier = time.monotonic()
    ending = earlier + seconds
    due = 0.0
    while earlier < ending:
        time.sleep(TICK_SECONDS)
        now = time.monotonic()
        due = min(due + (now - earlier) * per_second, AT_ONCE)
        earlier = now
        if due >= 1:
            flood.send(int(due))
            due -= int(due)


def main() -> None:
    path, interface, address, port, per_second, seconds = sys.argv[1:]
    flood = Flood(Path(path), interface, IPv4Address(address), int(port))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    flood.send(1)
    print("flooding", flush=True)
    began = time.monotonic()
    try:
        run(flood, int(per_second), float(seconds))
    finally:
        print(f"sent {flood.sent} in {time.monotonic() - began:.3f}", flush=True)


if __name__ == "__main__":
    main()
