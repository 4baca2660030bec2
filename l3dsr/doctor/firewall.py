"""Rules of nftables that would drop what the daemons send or need, read as libnftables-json(5).

What passes which hook: on engine raw all that a daemon sends enters the host by its TUN, so it passes
prerouting, forward and postrouting. Connection tracking sees one direction of those connections only, and may
call their packets invalid. On engine ebpf programs send past netfilter, but for the few packets that go by
Python. A node's server sees whole connections on input and output; where its listener adopts them, they begin
without a SYN.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from l3dsr.doctor.finding import Finding, fault, or_ok, warning
from l3dsr.doctor.subject import Subject

Json = Mapping[str, Any]
_CHECK = "firewall"
_PASSED = frozenset(("prerouting", "forward", "postrouting"))
_FAMILIES = frozenset(("ip", "inet"))
OURS = "l3dsr_"
"""How the names of the daemons' own tables begin."""
_TUN_NAMES = "l3dsr*"
_VERDICTS = ("drop", "reject")


class _Chain(NamedTuple):
    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} of table {self.family} {self.table}"


class _Rule(NamedTuple):
    chain: _Chain
    handle: int
    hooks: frozenset[str]
    """By which it can be reached."""
    expressions: list[Json]

    @property
    def command(self) -> str:
        return (
            f"nft delete rule {self.chain.family} {self.chain.table} {self.chain.name} handle {self.handle}"
        )


def rules(ruleset: Iterable[Json], unread: Iterable[str], subject: Subject) -> Iterator[Finding]:
    """``unread`` names tables whose rules are not in ``ruleset``."""
    objects, exempt = _met(ruleset)
    findings = [*_policies(objects, exempt, subject), *_dropping(objects, subject)]
    for table in unread:
        change = f"look at `nft list table {table}`: it must drop neither INVALID nor ours on its way"
        findings.append(warning(_CHECK, f"table {table} belongs to a program and is not read here", change))
    return or_ok(findings, _CHECK, "no rule of nftables that is known to do harm")


def _met(ruleset: Iterable[Json]) -> tuple[list[Json], set[_Chain]]:
    """What packets from the daemons' TUN devices meet, and the chains that have a rule to accept them.

    Rules behind such a one are left out.
    """
    objects: list[Json] = []
    exempt: set[_Chain] = set()
    for item in ruleset:
        rule = item.get("rule")
        if rule is not None:
            chain = _chain_of(rule)
            if chain in exempt:
                continue
            if _accepts_tun(list(rule.get("expr", []))):
                exempt.add(chain)
        objects.append(item)
    return objects, exempt


def _accepts_tun(expressions: list[Json]) -> bool:
    """Whether it does that and nothing else."""
    if not expressions or "accept" not in expressions[-1]:
        return False
    matches = [expression["match"] for expression in expressions if "match" in expression]
    return [(match.get("left"), match.get("right")) for match in matches] == [
        ({"meta": {"key": "iifname"}}, _TUN_NAMES)
    ]


def _policies(objects: list[Json], exempt: set[_Chain], subject: Subject) -> Iterator[Finding]:
    for item in objects:
        chain = item.get("chain", {})
        if chain.get("policy") == "drop" and chain.get("hook") == "forward" and _counts(chain):
            name = _Chain(chain["family"], chain["table"], chain["name"])
            if name in exempt:
                continue
            yield _by_engine(subject)(
                _CHECK,
                f"{name} drops what no rule accepts, and what the daemon sends is forwarded",
                _accept(name),
            )


def _dropping(objects: list[Json], subject: Subject) -> Iterator[Finding]:
    for rule in _rules(objects):
        states = _dropped_states(rule.expressions)
        if "invalid" in states and rule.hooks & _PASSED:
            has_more = len(rule.expressions) > 2
            found = f"{rule.chain} drops what connection tracking calls invalid, of which ours may be"
            severity = warning if has_more else _by_engine(subject)
            yield severity(_CHECK, found, _exempt(rule))
        elif "new" in states and _matches_tcp_flags(rule.expressions) and _meets_adoption(rule, subject):
            yield fault(
                _CHECK,
                f"{rule.chain} drops new connections without SYN: adopted ones have none",
                f"start packetbridge with --adopt=off, or run `{rule.command}`",
            )
        elif _is_opaque(rule.expressions) and rule.hooks & _PASSED:
            yield warning(
                _CHECK,
                f"{rule.chain} has a rule of iptables that drops packets and cannot be read here",
                f"look at `iptables-save`, chain {rule.chain.name}: it must drop neither INVALID nor ours",
            )


def _by_engine(subject: Subject) -> Any:
    """What drops forwarded packets ends engine raw, and hurts engine ebpf at its edges."""
    return warning if subject.engine == "ebpf" else fault


def _exempt(rule: _Rule) -> str:
    """Interfaces are unknown to postrouting, so there the rule has to go."""
    if "postrouting" in rule.hooks:
        return f"run `{rule.command}`"
    return _accept(rule.chain)


def _accept(chain: _Chain) -> str:
    rule = f'iifname "{_TUN_NAMES}" accept'
    return f"run `nft insert rule {chain.family} {chain.table} {chain.name} {rule}`"


def _meets_adoption(rule: _Rule, subject: Subject) -> bool:
    return subject.adopt and bool(rule.hooks & {"input", "prerouting"})


def _rules(objects: list[Json]) -> Iterator[_Rule]:
    """Those that can be reached by a hook, ours and other families left out."""
    hooks = _hooks(objects)
    for item in objects:
        rule = item.get("rule", {})
        chain = _chain_of(rule)
        if rule and _counts(rule) and hooks.get(chain):
            yield _Rule(
                chain, int(rule.get("handle", 0)), frozenset(hooks[chain]), list(rule.get("expr", []))
            )


def _hooks(objects: list[Json]) -> dict[_Chain, set[str]]:
    """From which hooks each chain is reached, by jumps too."""
    reached: dict[_Chain, set[str]] = {}
    for item in objects:
        chain = item.get("chain", {})
        if "hook" in chain:
            reached.setdefault(_Chain(chain["family"], chain["table"], chain["name"]), set()).add(
                chain["hook"]
            )
    jumps = [
        (_chain_of(item["rule"]), target)
        for item in objects
        if "rule" in item
        for target in _targets(item["rule"].get("expr", []))
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
        for verdict in (expression, *_map_verdicts(expression)):
            for kind in ("jump", "goto"):
                if kind in verdict:
                    yield verdict[kind]["target"]


def _dropped_states(expressions: list[Json]) -> set[str]:
    """Connection tracking states for which a rule drops; empty if it does not go by them."""
    states: set[str] = set()
    for expression in expressions:
        if "vmap" in expression and _is_state(expression["vmap"].get("key", {})):
            for value, verdict in _map_entries(expression):
                if any(kind in verdict for kind in _VERDICTS):
                    states.update(_texts(value))
        match = expression.get("match", {})
        if _is_state(match.get("left", {})) and match.get("op") in ("in", "=="):
            states.update(_texts(match.get("right")))
    has_map = any("vmap" in expression for expression in expressions)
    return states if has_map or _drops(expressions) else set()


def _map_entries(expression: Json) -> Iterator[tuple[Any, Json]]:
    data = expression.get("vmap", {}).get("data", {})
    if isinstance(data, dict):  # a name stands for a map of its own
        yield from ((value, verdict) for value, verdict in data.get("set", []) if isinstance(verdict, dict))


def _map_verdicts(expression: Json) -> list[Json]:
    return [verdict for _, verdict in _map_entries(expression)]


def _is_state(left: Any) -> bool:
    return isinstance(left, dict) and left.get("ct", {}).get("key") == "state"


def _texts(value: Any) -> Iterator[str]:
    """All words in a value, which may be one, a list, or a set."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from _texts(value.get("set", []))


def _matches_tcp_flags(expressions: list[Json]) -> bool:
    return any('"flags"' in repr(expression).replace("'", '"') for expression in expressions)


def _is_opaque(expressions: list[Json]) -> bool:
    return _drops(expressions) and any("xt" in expression for expression in expressions)


def _drops(expressions: list[Json]) -> bool:
    return any(kind in expression for expression in expressions for kind in _VERDICTS)


def _counts(item: Json) -> bool:
    return item.get("family") in _FAMILIES and not str(item.get("table", "")).startswith(OURS)


def _chain_of(rule: Json) -> _Chain:
    return _Chain(str(rule.get("family")), str(rule.get("table")), str(rule.get("chain")))
