"""The programs' maps `services` and `backends`, and what their change does to the flows."""

from collections.abc import Callable, Iterable, Iterator

from common.bpf.abi import ENDPOINT, MAX_SERVICES, Endpoint
from common.bpf.maps import ArrayMap, HashMap
from packetbridge.core.service import Service
from packetbridge.ebpf.abi import INDEX_SIZE, SERVICE, ServiceRow

_UNUSED = bytes(SERVICE.size)


class ServedMaps:
    def __init__(self, rows: ArrayMap, backends: HashMap, forget: Callable[[Iterable[int]], int]) -> None:
        """``forget`` buries the flows of VIP indexes, and says how many there were."""
        self._rows = rows
        self._backends = backends
        self._forget = forget

    def serve(self, services: Iterable[Service]) -> int:
        """These, from now on, instead of what the maps say. Flows of all others are buried; returns how many
        there were.

        A service that stays is not touched. One that is gone is so before its flows are, so that there are no
        new ones, and one that is changed is gone first.
        """
        before, after = set(services_in(self._rows)), set(services)
        gone = {served.vip_index: served for served in before - after}
        for index, served in gone.items():
            self._rows.update(index, _UNUSED)
            self._backends.delete(_endpoint(served))
        buried = self._forget(gone) if gone else 0
        for served in after - before:
            index = served.vip_index
            self._rows.update(index, SERVICE.pack(_row_of(served)))
            self._backends.update(_endpoint(served), index.to_bytes(INDEX_SIZE, "little"))
        return buried


def services_in(rows: ArrayMap) -> Iterator[Service]:
    for index in range(MAX_SERVICES):
        row = SERVICE.unpack(rows.lookup(index))
        if row.in_use:
            yield _service_of(index, row)


def _endpoint(served: Service) -> bytes:
    return ENDPOINT.pack(Endpoint(served.backend, served.backend_port.to_bytes(2, "big")))


def _row_of(served: Service) -> ServiceRow:
    return ServiceRow(
        vip=served.vip,
        bridge=served.bridge,
        backend=served.backend,
        vip_port=served.vip_port.to_bytes(2, "big"),
        backend_port=served.backend_port.to_bytes(2, "big"),
        in_use=1,
    )


def _service_of(vip_index: int, row: ServiceRow) -> Service:
    return Service(
        vip_index=vip_index,
        vip=row.vip,
        vip_port=int.from_bytes(row.vip_port, "big"),
        bridge=row.bridge,
        backend=row.backend,
        backend_port=int.from_bytes(row.backend_port, "big"),
    )
