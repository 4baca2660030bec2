"""What captures and the daemons' counters tell."""

import re
import signal
import time
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet
from scapy.utils import rdpcap

from lab import Host, Lab, LabError
from lab.process import POLL_SECONDS, Process
from tests.lab.conversation import VIP
from tests.lab.fetch import curl
from tests.lab.sockets import PATIENCE_SECONDS

COUNTERS = re.compile(r"counters: (.*)\n")


def segments(path: Path) -> list[Packet]:
    """The TCP packets of a capture, from their IP headers on."""
    return [packet[IP] for packet in rdpcap(str(path)) if TCP in packet]


def payload_length(segment: Packet) -> int:
    """By the headers: a capture may have cut the payload off."""
    return int(segment.len - 4 * segment.ihl - 4 * segment[TCP].dataofs)


def options(segment: Packet) -> dict[str, Any]:
    """By scapy's names, such as MSS, WScale, SAckOK, Timestamp and SAck."""
    return dict(segment[TCP].options)


def syn_of(found: list[Packet]) -> Packet:
    return next(segment for segment in found if str(segment[TCP].flags) == "S")


def syn_ack_of(found: list[Packet]) -> Packet:
    return next(segment for segment in found if str(segment[TCP].flags) == "SA")


def node_of(lab: Lab, target: str) -> str:
    """The name of the node that answers for the URL."""
    answered = re.search(r"X-Node: (\w+)\r\n", curl(lab.client, "-I", VIP + target))
    if answered is None:
        raise LabError(f"no X-Node in the answer for {target}")
    return answered[1]


def logged(lab: Lab, node: str, request_id: str, *, at_least: int) -> list[str]:
    """The lines of NGINX's log with this X-Request-Id, once there are so many: a line may be written only
    when the connection has ended. Raises LabError where they do not come.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        log = lab.nginx[node].access_log.read_text()
        lines = [line for line in log.splitlines() if line.endswith(f'"{request_id}"')]
        if len(lines) >= at_least:
            return lines
        if time.monotonic() > deadline:
            raise LabError(f"{node} logged {len(lines)} of {at_least} requests {request_id}")
        time.sleep(POLL_SECONDS)


def tun_of(host: Host) -> str:
    """Name of the device through which the packetbridge on this host and its backend talk."""
    shown = host.run(["ip", "-oneline", "link", "show", "type", "tun"]).stdout
    return shown.split(": ", 2)[1]


def daemon_of(host: Host) -> Process:
    """The balancer or packetbridge that was started last on this host."""
    daemons = [
        process
        for process in host.processes
        if Path(process.argv[4]).name in ("balancer", "packetbridge") and process.running
    ]
    return daemons[-1]


def handoffs_in(counters: dict[str, int]) -> int:
    """By a balancer, whichever part of it made them."""
    return sum(number for name, number in counters.items() if name.startswith("handoffs"))


def counters_of(daemon: Process) -> dict[str, int]:
    """What it has counted so far; what it counted 0 times is not there."""
    before = len(COUNTERS.findall(daemon.read_log()))
    daemon.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(reports := COUNTERS.findall(daemon.read_log())) == before:
        if time.monotonic() > deadline:
            raise LabError(f"no counters within {PATIENCE_SECONDS} s:\n{daemon.read_log()}")
        time.sleep(POLL_SECONDS)
    said = [entry.partition("=") for entry in reports[-1].split() if "=" in entry]
    return {name: int(number) for name, _, number in said}
