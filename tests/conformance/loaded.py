"""The programs of one object, loaded once for each time at which they are run.

Their time is a constant, so that nothing depends on when a test runs; all loads share one set of maps.
"""

import os
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from common.bpf.maps import ArrayMap, HashMap
from common.bpf.objects import BpfObject, Constants, object_path
from tests.bpf.arrays import clear_array
from tests.root.namespaces import Namespace

LINK = bytes.fromhex("000000000000 020000000001 0800")
"""To the address of the loopback device, in whose name the kernel runs programs."""
TUN_LINK = bytes.fromhex("020000000002 020000000001 0800")
"""To the address of the device that stands for the daemon's TUN."""
LOOPBACK = 1
_TUN = "tun"
NS = 1_000_000_000
UNSPEC, SHOT, REDIRECT = -1, 2, 7
_MOST_LOADS = 200


class Loads:
    def __init__(self, name: str, constants: Constants, max_entries: Mapping[str, int]) -> None:
        self._name = name
        self._constants = constants
        self._max_entries = max_entries
        self._maps = self._load(NS, None)
        self._at: OrderedDict[int, BpfObject] = OrderedDict()

    def program(self, name: str, now: float) -> int:
        """Its descriptor."""
        nanoseconds = round(now * NS)
        found = self._at.pop(nanoseconds, None) or self._load(nanoseconds, self._maps)
        self._at[nanoseconds] = found
        if len(self._at) > _MOST_LOADS:
            self._at.popitem(last=False)[1].close()
        return found.program(name)

    def hash_map(self, name: str) -> HashMap:
        return HashMap(self._maps.map(name))

    def array_map(self, name: str) -> ArrayMap:
        return ArrayMap(self._maps.map(name))

    def map(self, name: str) -> int:
        return self._maps.map(name)

    def clear(self, *names: str) -> None:
        """Empty these maps; the elements of an array become zeros."""
        for name in names:
            if name == "limits":
                array = self.array_map(name)
                clear_array(array)
                continue
            entries = self.hash_map(name)
            for key, _ in list(entries.items()):
                entries.delete(key)

    def close(self) -> None:
        for each in self._at.values():
            each.close()
        self._maps.close()

    def _load(self, nanoseconds: int, maps: BpfObject | None) -> BpfObject:
        return BpfObject(
            object_path(self._name),
            constants={**self._constants, "fixed_now_ns": nanoseconds},
            max_entries=self._max_entries,
            reuse={name: maps.map(name) for name in maps.map_names()} if maps else {},
        )


def tun_index() -> int:
    """Within `own_namespace`."""
    return socket.if_nametoindex(_TUN)


@contextmanager
def own_namespace() -> Iterator[None]:
    """The calling thread is in a network namespace with a loopback device, and one in the TUN's place.

    And it is on one CPU, so that packets that it makes the kernel queue arrive in their order.
    """
    cpus = os.sched_getaffinity(0)
    namespace = Namespace(f"l3dsr-conf-{os.getpid()}")
    subprocess.run(["ip", "netns", "add", namespace.name], check=True, timeout=20)
    try:
        namespace.run("ip link set lo up")
        namespace.run(f"ip link add {_TUN} address {TUN_LINK[:6].hex(':')} type veth peer name tun-peer")
        os.sched_setaffinity(0, {min(cpus)})
        with namespace.entered():
            yield
    finally:
        os.sched_setaffinity(0, cpus)
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True, timeout=20)
