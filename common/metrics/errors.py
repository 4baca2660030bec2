"""Which counters tell of something that went wrong, in words for people."""

import msgspec

from common.metrics import families
from common.metrics.families import Family
from common.metrics.samples import counted
from common.reports import Report

_SAID = {
    families.ERROR_ANSWERS: "answered by the balancer itself",
    families.BALANCER_DROPS: "packets dropped",
    families.PACKETBRIDGE_DROPS: "packets dropped",
    families.HANDOFFS_REFUSED: "handoffs refused",
    families.BALANCER_RESETS: "resets to clients of unknown flows",
    families.PACKETBRIDGE_RESETS: "resets to clients of unknown flows",
    families.BACKEND_REFUSALS: "refused by the backend",
    families.BACKEND_TIMEOUTS: "not answered by the backend",
    families.BALANCER_TABLE_FULL: "no room",
    families.PACKETBRIDGE_TABLE_FULL: "no room",
    families.DEVICE_ERRORS: "lost at taps and TUN",
    families.JOURNAL_FAILURES: "journal not written",
    families.BUGS: "lost by a bug",
}


class ErrorCount(msgspec.Struct, frozen=True):
    what: str
    reason: str
    """Empty where there is only one."""
    count: int


def errors(report: Report) -> list[ErrorCount]:
    """Those that have happened, most frequent first."""
    happened = [
        ErrorCount(_SAID[family], _reason(family, sample.labels), int(sample.value))
        for family, those in counted(report).items()
        for sample in those
        if family in _SAID and sample.value
    ]
    return sorted(happened, key=lambda error: (-error.count, error.what, error.reason))


def _reason(family: Family, labels: tuple[str, ...]) -> str:
    return labels[0].replace("_", " ") if family.labels else ""
