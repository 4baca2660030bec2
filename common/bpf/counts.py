"""The programs' counters: one array per CPU, indexed by an enumeration."""

from collections.abc import Mapping
from enum import IntEnum

from common.bpf.maps import PerCpuArray
from common.counters import Counters


def read_counts(counters: PerCpuArray, names: type[IntEnum]) -> Counters[str]:
    """By the names in lower case, the CPUs added up."""
    return Counters({each.name.lower(): counters.sums(each.value)[0] for each in names})


def add_counts(core: Mapping[str, int], counters: PerCpuArray, names: type[IntEnum]) -> Counters[str]:
    """What programs and core have counted together; nothing is left out for being 0."""
    total = read_counts(counters, names)
    total.update(core)
    return total
