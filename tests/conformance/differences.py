"""Where the two data planes are not alike, and what BPF_PROG_TEST_RUN cannot show, with the reason.

`markdown` is for the documents.
"""

from enum import Enum


class Difference(Enum):
    """What programs do otherwise than the core, and why; vectors and fuzzer name what they allow."""

    LONGER_RETRANSMISSION = (
        """A first payload that comes again, longer, before the backend has answered: the raw plane gives the
        backend both, the programs the longer one alone.""",
        """The programs hold one payload per flow; the longer one has all bytes of the other.""",
    )
    DAMAGED_FIRST_PAYLOAD = (
        """A handoff whose TCP checksum is wrong: the raw plane passes the damage on to the backend, the
        programs drop the handoff.""",
        """The payload gets another packet's header, so its checksum must be right. The client sends it again
        in either case.""",
    )
    STRANGER_OF_A_SHORT_FLOW = (
        """A segment comes before its handoff, and the flow begins and is over within the three seconds after
        which such a segment is answered with a RST: the raw plane sends none, the programs' Python does.""",
        """Python is not told when a flow begins; it looks when the three seconds are over.""",
    )
    SEGMENT_OF_A_REPLACED_FLOW = (
        """A segment waits for the backend of a flow whose place another connection of the same ports takes
        meanwhile: the raw plane forgets it, the programs' Python sends it on to the new connection's backend,
        which drops it for its numbers.""",
        """Python keeps such segments by addresses and ports, and does not see the handoff that replaces the
        flow.""",
    )
    LONG_WAIT = (
        """A segment waits for a backend that has not answered for a minute, while the client goes on asking:
        the raw plane keeps it, the programs' Python does not.""",
        """Python does not see that the client asks again. The client sends the segment again, too.""",
    )
    FULL_TABLES = (
        """Tables of a node that are full: in the raw plane a new flow takes the place of the one that closed
        first, at once, and the oldest tombstone goes. With the programs closed flows make room when they are
        looked at next, within seconds, and one of the oldest tombstones goes.""",
        """A map has no order of closing, and the kernel's LRU is approximate.""",
    )
    PYTHONS_SHARE = (
        """Connections whose first bytes only Python can judge, beyond a rate: the raw plane takes its time
        for all of them, the programs choose the node of their 4-tuple.""",
        """Nobody shall be able to keep Python busy.""",
    )
    WHOLE_SECONDS = (
        """Lifetimes and idle times are kept to the second by the programs, more exactly by the raw plane.""",
        """A flow's row in a map has seconds, to be small.""",
    )

    @property
    def what(self) -> str:
        return _line(self.value[0])

    @property
    def why(self) -> str:
        return _line(self.value[1])


class OutOfReach(Enum):
    """What cannot be shown by BPF_PROG_TEST_RUN, why, and what shows it instead."""

    PARTIAL_CHECKSUMS = (
        "Checksums that a network card has still to compute",
        "The kernel takes a packet from user space with its checksum as it stands.",
        "tests/root/bpf, with packets of the kernel's own, and the lab",
    )
    SUPERPACKETS = (
        "Superpackets (GSO), and first payloads that are cut out of one",
        "A packet from user space has no partial checksum, as every superpacket has.",
        "the lab",
    )
    REDIRECTS = (
        "The device and the neighbour that a packet leaves by",
        "The redirect is returned, not carried out. Clones are sent, and read from the loopback device.",
        "the lab",
    )
    NO_LINK_HEADER = (
        "Packets without a link header, as from a TUN",
        "The kernel demands one. What Python writes to its TUN is given to the program for Ethernet.",
        "the lab",
    )
    ADOPTION = (
        "The listener adopting a connection (packetbridge_adopt)",
        "The kernel gives a packet from user space no socket to belong to.",
        "the lab",
    )
    TTL = (
        "TTL",
        "The programs decrement it; in the raw plane the kernel does, when it routes the packet.",
        "the lab",
    )

    @property
    def what(self) -> str:
        return self.value[0]

    @property
    def why(self) -> str:
        return self.value[1]

    @property
    def shown_by(self) -> str:
        return self.value[2]


def markdown() -> str:
    lines = ["| what differs | why |", "|---|---|"]
    lines += [f"| {each.what} | {each.why} |" for each in Difference]
    lines += ["", "| what BPF_PROG_TEST_RUN cannot show | why | what shows it |", "|---|---|---|"]
    lines += [f"| {each.what} | {each.why} | {each.shown_by} |" for each in OutOfReach]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())
