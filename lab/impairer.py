"""The impairer: a program that takes packets from a TUN, spoils their order, and gives them back.

    python -m lab.impairer --device impair1 --seed 7 --reorder 0.1

It makes the TUN in the network namespace it runs in and says "ready"; routing traffic into the device
is the caller's part. What it writes back, the kernel receives from that device and routes on. The
device speaks virtio_net_hdr with offloads on, so superpackets and unfinished checksums pass as they
are; the header is a part of the packet here and never looked at. At SIGTERM it delivers what it
holds, prints its counts and ends, and the device is gone.
"""

import argparse
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import time
from dataclasses import MISSING, asdict, fields

from lab.disorder import Disorder, Faults

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
IFREQ = struct.Struct("16sH22x")
VNET_HDR_LENGTH = 10
READ_LENGTH = 1 << 17
QUEUE_PACKETS = 10_000
IPV4 = 4


def open_tun(device: str) -> int:
    """A non-blocking descriptor; the device is up, with the largest MTU and a queue that takes bursts."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(device.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
    settings = ["mtu", "65535", "txqueuelen", str(QUEUE_PACKETS), "up"]
    subprocess.run(["ip", "link", "set", "dev", device, *settings], check=True)
    return fd


def run(tun: int, disorder: Disorder, wakeup: socket.socket) -> None:
    """Until a signal comes over `wakeup`."""
    poll = select.poll()
    poll.register(tun, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    stopping = False
    while not stopping:
        deadline = disorder.next_deadline()
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        stopping = wakeup.fileno() in {fd for fd, _ in poll.poll(timeout)}
        _send(tun, disorder.on_timeout(time.monotonic()))
        while (packet := _read(tun)) is not None:
            if packet[VNET_HDR_LENGTH] >> 4 == IPV4:  # the kernel greets a new device with IPv6
                _send(tun, disorder.receive(packet, time.monotonic()))
    _send(tun, disorder.flush())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="lab.impairer", description="Reorder, delay, copy and drop packets."
    )
    parser.add_argument("--device", required=True, help="name of the TUN to make")
    for field in fields(Faults):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if field.type is int else float,
            required=field.default is MISSING,
            default=field.default,
        )
    arguments = vars(parser.parse_args())
    device = arguments.pop("device")
    try:
        disorder = Disorder(Faults(**arguments))
    except ValueError as error:
        parser.error(str(error))
    wakeup, wakeup_writer = socket.socketpair()
    wakeup_writer.setblocking(False)
    signal.set_wakeup_fd(wakeup_writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    tun = open_tun(device)
    print("ready", flush=True)
    run(tun, disorder, wakeup)
    print(*(f"{name}={value}" for name, value in asdict(disorder.counts).items()), flush=True)


def _read(tun: int) -> bytes | None:
    try:
        return os.read(tun, READ_LENGTH)
    except BlockingIOError:
        return None


def _send(tun: int, packets: list[bytes]) -> None:
    for packet in packets:
        os.write(tun, packet)


if __name__ == "__main__":
    main()
