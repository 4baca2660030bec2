"""The kernel's protocol counters of one network namespace, named as nstat names them.

/proc/net/snmp and /proc/net/netstat come in pairs of lines, names and then values:

    Tcp: RtoAlgorithm RtoMin ... RetransSegs ...
    Tcp: 1 200 ... 0 ...

which reads `TcpRetransSegs` 0.
"""

from collections.abc import Mapping


def parse(text: str) -> dict[str, int]:
    lines = text.splitlines()
    counters: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol, _, header = names.partition(":")
        numbers = values.partition(":")[2]
        for name, number in zip(header.split(), numbers.split(), strict=True):
            counters[protocol + name] = int(number)
    return counters


def increase(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What changed, and by how much; an unchanged counter is absent."""
    changes = {name: value - before.get(name, 0) for name, value in after.items()}
    return {name: change for name, change in changes.items() if change}
