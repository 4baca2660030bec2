"""What rules of nftables do to packets, read from libnftables-json(5)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Json = Mapping[str, Any]

OURS = "l3dsr_"
"""How the names of the daemons' own tables begin."""
TUN_NAMES = "l3dsr*"
_FAMILIES = frozenset(("ip", "inet"))
_STATES = frozenset(("invalid", "new", "established", "related", "untracked"))
_VERDICTS = ("drop", "reject")
_JUMPS = ("jump", "goto")
_PROTOCOL_KEYS = ("nfproto", "protocol", "l4proto")
_OUR_PROTOCOLS = frozenset(("ipv4", "ip", "tcp"))
_IPV6 = frozenset(("ipv6", "ip6", "icmpv6", "ipv6-icmp"))
_NO_CONDITIONS = frozenset((*_VERDICTS, *_JUMPS, "accept", "masquerade", "snat", "counter", "log"))
_XT_REJECT = {"type": "target", "name": "REJECT"}
_XT_TRANSLATIONS = tuple({"type": "target", "name": name} for name in ("MASQUERADE", "SNAT"))


class Chain(NamedTuple):
    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} of table {self.family} {self.table}"


class Rule(NamedTuple):
    chain: Chain
    handle: int
    hooks: frozenset[str]
    """By which it can be reached."""
    is_of_base: bool
    """Its chain is hooked in itself, and not jumped to."""
    expressions: list[Json]

    @property
    def deletion(self) -> str:
        return (
            f"nft delete rule {self.chain.family} {self.chain.table} {self.chain.name} handle {self.handle}"
        )

    @property
    def conditions(self) -> list[Json]:
        """Without any it concerns all packets."""
        return _conditions(self.expressions)

    @property
    def drops(self) -> bool:
        return any(
            each.get("xt") == _XT_REJECT or any(verdict in each for verdict in _VERDICTS)
            for each in self.expressions
        )

    @property
    def is_opaque(self) -> bool:
        """Matches of iptables are not told."""
        return any("xt" in condition for condition in self.conditions)

    @property
    def matches_tcp_flags(self) -> bool:
        return any('"flags"' in repr(each).replace("'", '"') for each in self.expressions)

    @property
    def matches_way_back(self) -> bool:
        """It looks at the route to the source, and by which interface that leads: uRPF."""
        flags = (_left(condition).get("fib", {}).get("flags", []) for condition in self.conditions)
        return any({"saddr", "iif"} <= set(_texts(each)) for each in flags)

    @property
    def matches_source(self) -> bool:
        return any(
            _left(condition).get("payload", {}).get("field") == "saddr" for condition in self.conditions
        )

    @property
    def translates_sources(self) -> bool:
        return any(
            "masquerade" in each or "snat" in each or each.get("xt") in _XT_TRANSLATIONS
            for each in self.expressions
        )

    def asks_for_nothing_but(self, keys: Iterable[str]) -> bool:
        """``keys`` of meta expressions."""
        return all(_left(condition).get("meta", {}).get("key") in keys for condition in self.conditions)

    @property
    def dropped_states(self) -> set[str]:
        """Connection tracking states for which it drops; empty if it does not go by them."""
        states: set[str] = set()
        for each in self.expressions:
            if "vmap" in each and _is_state(each["vmap"].get("key", {})):
                for value, verdict in _map_entries(each):
                    if any(kind in verdict for kind in _VERDICTS):
                        states.update(_texts(value))
            match = each.get("match", {})
            if _is_state(_left(each)) and self.drops:
                named = set(_texts(match.get("right")))
                states.update(_STATES - named if match.get("op") == "!=" else named)
        return states


class Met(NamedTuple):
    """By what the daemons send: rules behind one that accepts all of it are left out."""

    closed: list[tuple[Chain, str]]
    """Chains with policy drop of which no rule accepts all of ours, each with its hook."""
    rules: list[Rule]
    """Those that can be reached by a hook."""


def parse(ruleset: Iterable[Json]) -> Met:
    """Our own tables are left out."""
    items = [item for item in ruleset if _counts(item.get("chain") or item.get("rule") or {})]
    objects, exempt = _met(items)
    hooks = _hooks(objects)
    bases = {_chain_of(each): each for each in _each(objects, "chain") if "hook" in each}
    return Met(
        [
            (chain, each["hook"])
            for chain, each in bases.items()
            if each.get("policy") == "drop" and chain not in exempt
        ],
        [
            Rule(
                chain,
                int(rule.get("handle", 0)),
                frozenset(hooks[chain]),
                chain in bases,
                rule.get("expr", []),
            )
            for rule in _each(objects, "rule")
            if hooks.get(chain := _chain_of(rule)) and not _is_of_ipv6(rule.get("expr", []))
        ],
    )


def _met(items: list[Json]) -> tuple[list[Json], set[Chain]]:
    """What packets from the daemons' TUN devices meet, and the chains that accept all of them."""
    exempt: set[Chain] = set()
    while True:
        objects: list[Json] = []
        found: set[Chain] = set()
        for item in items:
            if "rule" in item:
                rule = item["rule"]
                chain = _chain_of(rule)
                if chain in found:
                    continue
                if _accepts_tun(rule.get("expr", []), chain, exempt):
                    found.add(chain)
            objects.append(item)
        if found == exempt:
            return objects, exempt
        exempt = found


def _accepts_tun(expressions: list[Json], chain: Chain, exempt: set[Chain]) -> bool:
    """All that comes from there, in the rule itself or where it jumps to."""
    if not all(_is_tun(condition) for condition in _conditions(expressions)):
        return False
    targets = {chain._replace(name=name) for name in _targets(expressions)}
    return bool(targets & exempt) or any("accept" in each for each in expressions)


def _is_tun(condition: Json) -> bool:
    match = condition.get("match", {})
    is_of_interface = _left(condition).get("meta", {}).get("key") in ("iifname", "iif")
    names = list(_texts(match.get("right"))) if is_of_interface and match.get("op") != "!=" else []
    return any(name.startswith(TUN_NAMES.rstrip("*")) for name in names)


def _conditions(expressions: Iterable[Json]) -> list[Json]:
    """But for those that all of ours meet."""
    return [
        each
        for each in expressions
        if not each.keys() & _NO_CONDITIONS
        and each.get("xt", {}).get("type") != "target"
        and not _protocols(each) & _OUR_PROTOCOLS
    ]


def _protocols(condition: Json) -> set[str]:
    """Those that it lets through, where it goes by them."""
    left, match = _left(condition), condition.get("match", {})
    key, field = left.get("meta", {}).get("key"), left.get("payload", {}).get("field")
    is_asked = (key in _PROTOCOL_KEYS or field == "protocol") and match.get("op") == "=="
    return set(_texts(match.get("right"))) if is_asked else set()


def _is_of_ipv6(expressions: Iterable[Json]) -> bool:
    return any(
        _left(each).get("payload", {}).get("protocol") in _IPV6 or set() < _protocols(each) <= _IPV6
        for each in expressions
    )


def _hooks(objects: list[Json]) -> dict[Chain, set[str]]:
    """From which hooks each chain is reached, by jumps too."""
    reached = {_chain_of(each): {str(each["hook"])} for each in _each(objects, "chain") if "hook" in each}
    jumps = [
        (_chain_of(rule), target)
        for rule in _each(objects, "rule")
        for target in _targets(rule.get("expr", []))
    ]
    has_grown = True
    while has_grown:
        has_grown = False
        for chain, name in jumps:
            target = chain._replace(name=name)
            new = reached.get(chain, set()) - reached.get(target, set())
            if new:
                reached.setdefault(target, set()).update(new)
                has_grown = True
    return reached


def _targets(expressions: Iterable[Json]) -> Iterator[str]:
    for expression in expressions:
        for verdict in (expression, *(verdict for _, verdict in _map_entries(expression))):
            for kind in _JUMPS:
                if kind in verdict:
                    yield verdict[kind]["target"]


def _map_entries(expression: Json) -> Iterator[tuple[Any, Json]]:
    data = expression.get("vmap", {}).get("data", {})
    if isinstance(data, dict):  # a name stands for a map of its own
        yield from ((value, verdict) for value, verdict in data.get("set", []) if isinstance(verdict, dict))


def _is_state(left: Json) -> bool:
    return bool(left.get("ct", {}).get("key") == "state")


def _left(expression: Json) -> Json:
    """What a match compares."""
    left = expression.get("match", {}).get("left")
    return left if isinstance(left, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    """All words in a value, which may be one, a list, a set, or an expression of bits."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from _texts([value.get("set", []), value.get("|", [])])


def _each(objects: Iterable[Json], kind: str) -> Iterator[Json]:
    return (item[kind] for item in objects if kind in item)


def _counts(item: Json) -> bool:
    return item.get("family") in _FAMILIES and not str(item.get("table", "")).startswith(OURS)


def _chain_of(item: Json) -> Chain:
    """Of a chain, or the one that a rule stands in."""
    return Chain(str(item.get("family")), str(item.get("table")), str(item.get("chain") or item.get("name")))
