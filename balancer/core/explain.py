"""Why a URL is served by the node that serves it, from its key to the table's slot."""

from collections.abc import Iterator
from operator import ne

import msgspec

from balancer.core.choice import ALL_AT_BOUND, choose
from balancer.core.loads import Loads
from balancer.core.service import Service
from common.hashing.maglev import LookupTable, build
from common.hashing.request_key import RequestHead, TooLong, parse_request_head_untrusted, request_key
from common.hashing.sequence import node_sequence
from common.hashing.xxh64 import xxh64
from common.reports import Departure, Explanation


def explain(service: Service, loads: Loads, name: str, url: str) -> Explanation:
    """For the service called ``name``, all but the `departures`; ``url`` is whole or the path alone, as a
    request has it. `ValueError`, one line, for what is no URL of a request.
    """
    key = _key_of(service, url)
    key_hash = xxh64(key, service.hash_seed)
    found = Explanation(
        service=name,
        key=key.decode(errors="backslashreplace"),
        key_hash=f"{key_hash:016x}",
        slot=0,
        slots=0,
        node="",
        sequence=[],
        departures=[],
        text="no node is open to new flows",
    )
    table, choice = service.table, choose(service, loads, key_hash)
    if table is None or choice is None:
        return found
    is_full = choice.displaced == ALL_AT_BOUND
    return msgspec.structs.replace(
        found,
        slot=key_hash % len(table.slots),
        slots=len(table.slots),
        node=choice.node.name,
        sequence=list(dict.fromkeys(node_sequence(table, key_hash))),
        text="all nodes of the sequence have their share of flows: the first one gets it" if is_full else "",
    )


def departures(service: Service, url: str) -> list[Departure]:
    """What of ``url`` and of all slots would change with each node that left. `ValueError` as of `explain`.

    Builds a table for each node, which takes its time (`common.hashing.maglev`); any thread may do it.
    """
    key_hash = xxh64(_key_of(service, url), service.hash_seed)
    return [] if service.table is None else list(_departures(service, service.table, key_hash))


def _departures(service: Service, table: LookupTable, key_hash: int) -> Iterator[Departure]:
    weights = {name: service.weights[service.nodes[name].address] for name in table.names}
    before = _names(table)
    for leaving in table.names:
        others = {name: weight for name, weight in weights.items() if name != leaving}
        if not others:
            yield Departure(node=leaving, successor="", moved=1.0)
            continue
        after = build(others, len(before))
        moved = sum(map(ne, before, _names(after))) / len(before)
        yield Departure(node=leaving, successor=after.lookup(key_hash), moved=moved)


def _names(table: LookupTable) -> list[str]:
    """Of all slots' nodes."""
    return [table.names[slot] for slot in table.slots]


def _key_of(service: Service, url: str) -> bytes:
    line = b"GET %s HTTP/1.1\r\n" % url.encode(errors="surrogateescape")
    request = parse_request_head_untrusted(line, service.target_limit)
    match request:
        case RequestHead():
            return request_key(request, service.key)
        case TooLong():
            raise ValueError(f"the URL has more than {service.target_limit} bytes: it would be answered 414")
        case _:
            raise ValueError(
                f"{url!r} is no URL of a request: give a path such as /film/1.ts, percent-encoded"
            )
