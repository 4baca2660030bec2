"""What a failed health check means: the kinds of failure, and how a silence is explained.

A check to which nothing came back cannot tell why. The channel to the node's packetbridge can: whether the
node is reachable, believes our tags, has the same VIP for the DSCP, and what it knows of the check's flow.
"""

from enum import Enum
from typing import NamedTuple

from balancer.core.channel import State
from common.reports import FlowReport
from common.wire import seq


class Failure(Enum):
    NODE_UNREACHABLE = "node unreachable"
    BRIDGE_SILENT = "packetbridge silent"
    TAG_REFUSED = "tag refused"
    BACKEND_REFUSED = "backend refused"
    BACKEND_SILENT = "backend silent"
    WRONG_STATUS = "wrong status"
    NOT_FROM_VIP = "answer not from the VIP"
    ANSWER_LOST = "answer lost"
    BAD_ANSWER = "bad answer"


class Knowledge(Enum):
    """What the node knows of the check's flow."""

    UNASKED = "unasked"
    """It was not asked, or has not answered."""
    UNKNOWN = "unknown"
    OPENING = "opening"
    """Its handoff came, the backend has not answered."""
    SPLICED = "spliced"


class Hearsay(NamedTuple):
    channel: State = State.UNKNOWN
    text: str = ""
    """What is wrong with the channel, in words."""
    problems: tuple[str, ...] = ()
    """What is wrong with the VIP or its DSCP at this node, in words."""
    flow: Knowledge = Knowledge.UNASKED
    bytes_to_client: int | None = None
    """Of that flow, where it is known."""


def of_flow(report: FlowReport | None) -> tuple[Knowledge, int | None]:
    """What a node's report says: what it knows, and the bytes that its backend has sent (FIN counts, too)."""
    if report is None:
        return Knowledge.UNKNOWN, None
    if report.state == "opening":
        return Knowledge.OPENING, None
    numbers = [report.details.get(name) for name in ("backend_next_seq", "balancer_isn", "seq_delta")]
    following, isn, delta = (number if isinstance(number, int) else None for number in numbers)
    if following is None or isn is None or delta is None:
        return Knowledge.SPLICED, None
    return Knowledge.SPLICED, max(seq.distance(seq.add(isn, 1 - delta), following), 0)


_BY_CHANNEL = {
    State.SILENT: Failure.BRIDGE_SILENT,
    State.CLOSED: Failure.BRIDGE_SILENT,
    State.VERSION: Failure.BRIDGE_SILENT,
    State.UNREACHABLE: Failure.NODE_UNREACHABLE,
    State.REFUSED_TAG: Failure.TAG_REFUSED,
    State.REFUSED_TIME: Failure.TAG_REFUSED,
}
_NOTHING = "nothing comes back: is the node up, and does its packetbridge run?"
_NOT_TAKEN = (
    "its packetbridge runs and knows nothing of the check: a filter on the way drops the handoff"
    " (a SYN with data), or the backend refused and that was lost"
)


def explain_silence(hearsay: Hearsay, vip: str) -> tuple[Failure, str]:
    """Why nothing has come back from ``vip`` (ADDR:PORT)."""
    if hearsay.flow is Knowledge.OPENING:
        return Failure.BACKEND_SILENT, "the backend does not answer the packetbridge's SYN"
    if hearsay.flow is Knowledge.SPLICED:
        sent = hearsay.bytes_to_client
        said = "the node answered" if not sent else f"the node answered with {sent} bytes"
        lost = (
            f"{said}, but not one packet came from {vip}: does a filter on the way (uRPF) drop that source?"
        )
        return Failure.ANSWER_LOST, lost
    if hearsay.channel in _BY_CHANNEL:
        return _BY_CHANNEL[hearsay.channel], hearsay.text or hearsay.channel.value
    if hearsay.problems:
        return Failure.BRIDGE_SILENT, "; ".join(hearsay.problems)
    if hearsay.channel is State.OK and hearsay.flow is Knowledge.UNKNOWN:
        return Failure.BRIDGE_SILENT, _NOT_TAKEN
    return Failure.BRIDGE_SILENT, _NOTHING
