"""What the programs know of the services: maps `services` and `tables`.

A service's row names its Maglev table, and there is room for two tables of each: a new one is filled beside
the one in use, and one update of the row has the programs go by all that is new at once.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from balancer.core.service import Endpoint, Service
from balancer.ebpf import abi
from balancer.ebpf.abi import SERVICE, ServiceRow
from common.bpf import abi as shared
from common.bpf.abi import ENDPOINT, MAX_SERVICES
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps, create_array
from common.hashing.maglev import LookupTable


class Draft(NamedTuple):
    """A service with the table that it is to have."""

    service: Service
    slots: bytes
    """Empty where it has none."""
    inner: int | None
    """Descriptor of a new table; None where the one in use is the same."""


class PublishedServices:
    def __init__(self, rows: HashMap, tables: MapOfMaps) -> None:
        """The maps may have those of an earlier run."""
        self._rows = rows
        self._tables = tables
        self._slots: dict[Endpoint, bytes] = {}
        """Of the tables in use, as far as this run made them."""

    @property
    def rows(self) -> dict[Endpoint, ServiceRow]:
        return {_endpoint(key): SERVICE.unpack(row) for key, row in self._rows.items()}

    def draft(self, services: Iterable[Service], owned: ExitStack) -> list[Draft]:
        """Make and fill the tables, which no program sees yet. `BpfError`."""
        drafts = []
        for service in services:
            slots = slots_of(service)
            inner = None
            if slots and slots != self._slots.get(service.endpoint):
                inner = create_array("maglev", abi.SLOT_SIZE, len(slots) // abi.SLOT_SIZE)
                owned.callback(os.close, inner)
                ArrayMap(inner).update_batch(slots)
            drafts.append(Draft(service, slots, inner))
        return drafts

    def publish(self, draft: Draft, node_mtu: int) -> None:
        """``node_mtu`` is the smallest path MTU to any node, in bytes."""
        service = draft.service
        key = _key(service.endpoint)
        old = self._rows.lookup(key)
        table = SERVICE.unpack(old).table if old else 0
        if draft.inner is not None:
            table = service.vip_index + MAX_SERVICES * (table == service.vip_index)
            self._tables.publish(table, draft.inner)
        self._slots[service.endpoint] = draft.slots
        row = service_row(service, node_mtu, table if draft.slots else 0)
        self._rows.update(key, SERVICE.pack(row))

    def withdraw(self, endpoint: Endpoint) -> None:
        """Its packets are the host's from now on."""
        self._slots.pop(endpoint, None)
        self._rows.delete(_key(endpoint))


def slots_of(service: Service) -> bytes:
    """A Maglev table as it lies in its map; empty where no node can take a connection."""
    table: LookupTable | None = service.table
    if table is None:
        return b""
    addresses = [service.nodes[name].address for name in table.names]
    return b"".join([addresses[slot] for slot in table.slots])


def service_row(service: Service, node_mtu: int, table: int) -> ServiceRow:
    """``table`` is its index in map `tables`."""
    return ServiceRow(
        vip=service.vip,
        port=service.port.to_bytes(2, "big"),
        vip_index=service.vip_index,
        key_kind=abi.KEY_KINDS.get(service.key.kind, abi.KeyKind.UNREAD),
        hash_seed=service.hash_seed,
        key_argument=service.key.argument,
        target_limit=service.target_limit,
        max_payload=service.max_payload,
        node_mtu=node_mtu,
        promised_scale=service.promised_scale,
        non_http=abi.NonHttpNumber[service.non_http.name],
        table=table,
    )


def _key(endpoint: Endpoint) -> bytes:
    vip, port = endpoint
    return ENDPOINT.pack(shared.Endpoint(vip, port.to_bytes(2, "big")))


def _endpoint(key: bytes) -> Endpoint:
    unpacked = ENDPOINT.unpack(key)
    return unpacked.address, int.from_bytes(unpacked.port, "big")
