"""What a node's kernel and its packetbridge say to each other, as the kernel's TCP gets and sends it.

The packetbridge's programs change packets behind the place at which a capture sees them come. So nftables
tells: at the input hook what is delivered, at the output hook what is sent. tcpdump writes it down; it cannot
know whether it is late, so the rules count as well.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scapy.layers.inet import IP
from scapy.packet import Packet
from scapy.utils import RawPcapReader

from lab import Host, Lab
from tests.lab.sockets import await_that

TABLE = "backend_leg"
GROUP = 80
COUNTED = re.compile(r"counter packets (\d+) ")
HEADERS_ONLY = 120
_HEADER_SIZE = 4
_PAYLOAD = 9  # NFULA_PAYLOAD
_BEHIND_ALL = 400


@contextmanager
def backend_leg(lab: Lab, node: Host) -> Iterator[list[Packet]]:
    """What goes to and comes from the node's backend address: IP packets, in their order, cut behind their
    headers. Filled when the block is left.
    """
    found: list[Packet] = []
    backend = lab.topology.node(node.name).backend
    log = f"counter log group {GROUP} snaplen {HEADERS_ONLY} queue-threshold 1"
    lines = [
        f"table ip {TABLE} {{",
        "chain input {",
        f"type filter hook input priority {_BEHIND_ALL};",
        f"ip daddr {backend} {log}",
        "}",
        "chain output {",
        f"type filter hook output priority {_BEHIND_ALL};",
        f"ip saddr {backend} {log}",
        "}",
        "}",
    ]
    node.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")
    try:
        with node.capture(f"nflog:{GROUP}") as path:
            yield found
            told = sum(map(int, COUNTED.findall(node.run(["nft", "list", "table", "ip", TABLE]).stdout)))
            await_that(lambda: len(list(_packets(path))) >= told)
    finally:
        node.run(["nft", "delete", "table", "ip", TABLE])
    found += _packets(path)


def _packets(path: Path) -> Iterator[Packet]:
    """Each is a header and attributes (linux/netfilter/nfnetlink_log.h), of which the payload is one."""
    with RawPcapReader(str(path)) as messages:
        for message, _ in messages:
            at = _HEADER_SIZE
            while at < len(message):
                size = int.from_bytes(message[at : at + 2], "little")
                kind = int.from_bytes(message[at + 2 : at + 4], "little")
                if kind == _PAYLOAD:
                    yield IP(message[at + 4 : at + size])
                at += (size + 3) & ~3
