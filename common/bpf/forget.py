"""Forgetting the flows of services that are gone: by a program, as a walk in Python takes far longer."""

from collections.abc import Iterable

from common.bpf.abi import FORGETTING, Forgetting
from common.bpf.run import run_syscall


def forget(program: int, vip_indexes: Iterable[int]) -> int:
    """All of these services. ``program`` is a descriptor of the program `forget_services`.

    Returns how many there were, of a packetbridge those that were not over. `BpfError`.
    """
    mask = sum(1 << index for index in set(vip_indexes))
    _, context = run_syscall(program, FORGETTING.pack(Forgetting(mask, 0)))
    return FORGETTING.unpack(context).flows
