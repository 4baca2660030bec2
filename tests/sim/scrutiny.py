"""What a model endpoint demands of the packets that reach it, beyond what a TCP must check to work.

Each finding is a sentence in ``Host.violations``; a simulation ends with none, or with what it provoked.
"""

from collections.abc import Callable

from tests.sim.receiver import Receiver
from tests.sim.segment import RST, SYN, Segment, emit_options, steps
from tests.sim.sender import Sender


class Scrutiny:
    """Of one connection's peer."""

    def __init__(self, report: Callable[[str], None], largest_segment: int, promised_window: int) -> None:
        self._report = report
        self._largest_segment = largest_segment
        """Payload and options together: our MSS option (RFC 6691)."""
        self._promised_window = promised_window
        """What somebody else offered in our name at the stream's start."""
        self.is_ordered = True
        """Whether the way to here keeps the order of packets."""
        self.stamps_sent: set[int] = set()
        self._newest_stamp: int | None = None

    def of_segment(
        self, segment: Segment, sender: Sender, receiver: Receiver, stamps: bool, sack: bool
    ) -> None:
        """Before the endpoint has taken it."""
        if segment.flags & RST:
            return
        self._of_size(segment)
        if segment.flags & SYN:
            return
        self._of_stamps(segment, stamps)
        start = receiver.offset(segment.seq)
        end = start + len(segment.payload)
        is_probe = len(segment.payload) == 1 and start == receiver.edge
        if end > max(receiver.edge, 1 + self._promised_window) and not is_probe:
            self._report(f"sent up to {end}, beyond the window that ends at {receiver.edge}")
        if sender.offset(segment.ack) > sender.nxt:
            self._report(f"acknowledges {sender.offset(segment.ack)}, sent is {sender.nxt}")
        if segment.options.blocks and not sack:
            self._report("SACK blocks though not negotiated")
        for edges in segment.options.blocks:
            left, right = map(sender.offset, edges)
            if not 0 < left < right <= sender.nxt:
                self._report(f"SACK block {left}..{right}, sent is {sender.nxt}")

    def of_answer(self, offered: Segment, answer: Segment) -> None:
        """A SYN-ACK takes no option that the SYN did not offer."""
        ours, theirs = offered.options, answer.options
        if theirs.scale is not None and ours.scale is None:
            self._report("SYN-ACK with window scale")
        if theirs.sack_permitted and not ours.sack_permitted:
            self._report("SYN-ACK with SACK-permitted")
        if (theirs.stamps is None) != (ours.stamps is None):
            self._report("SYN-ACK and SYN differ in timestamps")
        if theirs.mss is None:
            self._report("SYN-ACK without MSS")
        self._of_stamps(answer, theirs.stamps is not None)

    def _of_size(self, segment: Segment) -> None:
        size = segment.gso_size or len(segment.payload)
        options = 0 if segment.flags & SYN else len(emit_options(segment.options))
        if size + options > self._largest_segment:
            self._report(f"segment of {size} + {options} bytes, MSS is {self._largest_segment}")

    def _of_stamps(self, segment: Segment, negotiated: bool) -> None:
        stamps = segment.options.stamps
        if stamps is None:
            if negotiated:
                self._report("segment without timestamps")
            return
        if not negotiated:
            self._report("timestamps though not negotiated")
            return
        value, echo = stamps
        if echo not in self.stamps_sent:
            self._report(f"TSecr {echo} was never sent")
        if self._newest_stamp is not None and steps(self._newest_stamp, value) < 0 and self.is_ordered:
            self._report(f"TSval {value} after {self._newest_stamp}")
        if self._newest_stamp is None or steps(self._newest_stamp, value) > 0:
            self._newest_stamp = value
