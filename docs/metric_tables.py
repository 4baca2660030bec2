"""The metrics of a daemon as a table of a document."""

from common.metrics.families import FAMILIES, Family


def metric_table(daemon: str) -> str:
    """Name, type, labels and meaning of each; and from which counters of the report it is made."""
    lines = ["| metric | type | labels | meaning | counters |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        if daemon in family.daemons:
            labels = ", ".join(f"`{label}`" for label in family.labels)
            row = (f"`{family.metric(daemon)}`", family.kind, labels, family.meaning, _counters(family))
            lines.append(f"| {' | '.join(row)} |".replace("  ", " "))
    return "\n".join(lines)


def _counters(family: Family) -> str:
    """Each with its label, where it is not the counter's name."""
    named = [
        f"`{counter}`" if label in {"", counter} else f"`{counter}` as `{label}`"
        for counter, label in family.counted.items()
    ]
    if family.prefix:
        named.append(f"`{family.prefix}*`")
    return ", ".join(named)
