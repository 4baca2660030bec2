"""How a silence is explained by what the channel to the node says."""

import pytest

from balancer.core.channel import State
from balancer.core.hearsay import Failure, Hearsay, Knowledge, explain_silence, of_flow
from common.reports import FlowReport

VIP = "192.168.33.10:80"


def report(state: str, **details: int | None) -> FlowReport:
    return FlowReport("10.0.0.1", 61000, 1, "10.0.0.2", state, 1.0, 0.5, dict(details))


@pytest.mark.parametrize(
    ("hearsay", "failure", "says"),
    [
        (Hearsay(), Failure.BRIDGE_SILENT, "is the node up"),
        (Hearsay(State.UNREACHABLE, "unreachable: No route"), Failure.NODE_UNREACHABLE, "No route"),
        (Hearsay(State.CLOSED, "does not run"), Failure.BRIDGE_SILENT, "does not run"),
        (Hearsay(State.SILENT, "no answer"), Failure.BRIDGE_SILENT, "no answer"),
        (Hearsay(State.VERSION, "speaks version 9"), Failure.BRIDGE_SILENT, "speaks version 9"),
        (Hearsay(State.REFUSED_TAG, "refuses our tag"), Failure.TAG_REFUSED, "refuses our tag"),
        (Hearsay(State.REFUSED_TIME, "refuses our time"), Failure.TAG_REFUSED, "refuses our time"),
        (Hearsay(State.OK, "ok", ("DSCP 1 arrives as 0",)), Failure.BRIDGE_SILENT, "DSCP 1 arrives as 0"),
        (Hearsay(State.OK, "ok", (), Knowledge.UNKNOWN), Failure.BRIDGE_SILENT, "drops the handoff"),
        (Hearsay(State.OK, "ok", (), Knowledge.OPENING), Failure.BACKEND_SILENT, "SYN"),
        (
            Hearsay(State.OK, "ok", (), Knowledge.SPLICED, 512),
            Failure.ANSWER_LOST,
            f"512 bytes, but not one packet came from {VIP}",
        ),
        (Hearsay(State.SILENT, "", (), Knowledge.SPLICED), Failure.ANSWER_LOST, "uRPF"),
    ],
)
def test_silence_is_explained(hearsay: Hearsay, failure: Failure, says: str) -> None:
    found, text = explain_silence(hearsay, VIP)
    assert found is failure
    assert says in text
    assert "\n" not in text


def test_every_state_of_the_channel_has_an_explanation() -> None:
    assert all(explain_silence(Hearsay(state), VIP)[1] for state in State)


def test_nodes_report_tells_how_many_bytes_its_backend_has_sent() -> None:
    """Numbers of the backend's own leg: its ISN is the balancer's less the seq delta."""
    flow = report("established", backend_next_seq=5 + 1 + 300, balancer_isn=2**32 - 10, seq_delta=2**32 - 15)
    assert of_flow(flow) == (Knowledge.SPLICED, 300)
    assert of_flow(report("echoing")) == (Knowledge.SPLICED, None)
    assert of_flow(report("opening", backend_next_seq=None)) == (Knowledge.OPENING, None)
    assert of_flow(None) == (Knowledge.UNKNOWN, None)
