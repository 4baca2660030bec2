"""What the programs know of the services: maps `services` and `tables`.

A service's row names its Maglev table, and there are places for two tables of each: a new one is written
beside the one in use, and one update of the row has the programs go by all that is new at once. Where
another map is put into a place, the kernel waits until no program can have found the old one. So a map that
is there is written anew if it has been out of use for so long that no program still reads it.
"""

import math
import os
import time
from collections.abc import Container, Iterable
from contextlib import ExitStack
from typing import NamedTuple

from balancer.core.service import Endpoint, Service
from balancer.ebpf import abi
from balancer.ebpf.abi import SERVICE, ServiceRow
from common.bpf import abi as shared
from common.bpf.abi import ENDPOINT, MAX_SERVICES
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps, create_array
from common.hashing.maglev import LookupTable

QUIET_SECONDS = 0.5
"""A program runs for microseconds."""


class Draft(NamedTuple):
    """A service with the table that it is to have."""

    service: Service
    slots: bytes
    """Empty where it has none."""
    place: int
    """Index into map `tables`; 0 where it has none."""
    inner: int | None
    """Descriptor of a map to be put there; None where the one that is there has the table."""


class PublishedServices:
    def __init__(self, rows: HashMap, tables: MapOfMaps) -> None:
        """The maps may have those of an earlier run."""
        self._rows = rows
        self._tables = tables
        self._slots: dict[Endpoint, bytes] = {}
        """Of the tables in use, as far as this run made them."""
        self._inner: dict[int, int] = {}
        """Descriptors of the maps that this run has put into places."""
        self._left: dict[int, float] = {}
        """When a place went out of use, as far as it was in use."""

    def close(self) -> None:
        for descriptor in self._inner.values():
            os.close(descriptor)
        self._inner.clear()

    @property
    def rows(self) -> dict[Endpoint, ServiceRow]:
        return {_endpoint(key): SERVICE.unpack(row) for key, row in self._rows.items()}

    def draft(self, services: Iterable[Service], owned: ExitStack) -> list[Draft]:
        """Make and write the tables, by which no program goes yet. `BpfError`."""
        used = {row.table for row in self.rows.values()}
        return [self._draft(service, used, owned) for service in services]

    def publish(self, draft: Draft, node_mtu: int) -> None:
        """``node_mtu`` is the smallest path MTU to any node, in bytes."""
        service = draft.service
        before = self._place_of(service.endpoint)
        if draft.inner is not None:
            self._tables.publish(draft.place, draft.inner)
            self._keep(draft.place, draft.inner)
        self._slots[service.endpoint] = draft.slots
        row = service_row(service, node_mtu, draft.place)
        self._rows.update(_key(service.endpoint), SERVICE.pack(row))
        if draft.place != before:
            self._left[before] = time.monotonic()

    def withdraw(self, endpoint: Endpoint) -> None:
        """Its packets are the host's from now on."""
        before = self._place_of(endpoint)
        self._slots.pop(endpoint, None)
        self._rows.delete(_key(endpoint))
        self._left[before] = time.monotonic()

    def _draft(self, service: Service, used: Container[int], owned: ExitStack) -> Draft:
        """``used`` are the places of all tables in use."""
        slots, first = slots_of(service), service.vip_index
        if not slots:
            return Draft(service, slots, 0, None)
        before = self._place_of(service.endpoint)
        if slots == self._slots.get(service.endpoint) and before in (first, first + MAX_SERVICES):
            return Draft(service, slots, before, None)
        place = first + MAX_SERVICES * (first in used)
        inner = self._inner.get(place)
        if inner is not None and time.monotonic() - self._left.get(place, -math.inf) > QUIET_SECONDS:
            ArrayMap(inner).update(0, slots)
            return Draft(service, slots, place, None)
        inner = create_array("maglev", abi.TABLE_SIZE, 1)
        owned.callback(os.close, inner)
        ArrayMap(inner).update(0, slots)
        return Draft(service, slots, place, inner)

    def _place_of(self, endpoint: Endpoint) -> int:
        """Of the table in use; 0 where there is none."""
        row = self._rows.lookup(_key(endpoint))
        return SERVICE.unpack(row).table if row else 0

    def _keep(self, place: int, inner: int) -> None:
        if (old := self._inner.pop(place, None)) is not None:
            os.close(old)
        self._inner[place] = os.dup(inner)


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
