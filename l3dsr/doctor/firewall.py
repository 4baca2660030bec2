"""Rules that would drop or spoil what the daemons send or need.

What passes which hook: on engine raw all that a daemon sends enters the host by its TUN, so it passes
prerouting, forward and postrouting. Connection tracking sees one direction of those connections only, and may
call their packets invalid, or give a handoff another source. On engine ebpf programs send past netfilter, but
for the few packets that go by Python. A node's server sees whole connections on input and output; where its
listener adopts them, they begin without a SYN.
"""

from collections.abc import Callable, Iterable, Iterator

from l3dsr.doctor.finding import Finding, fault, or_ok, warning
from l3dsr.doctor.legacy_tables import LegacyChain
from l3dsr.doctor.nftables import TUN_NAMES, Chain, Json, Rule, parse
from l3dsr.doctor.subject import Subject

_CHECK = "firewall"
_FORWARDED = frozenset(("prerouting", "forward"))
_PASSED = _FORWARDED | {"postrouting"}
_INTERFACES_OUT = ("oifname", "oif")


def rules(
    ruleset: Iterable[Json], unread: Iterable[str], legacy: Iterable[LegacyChain], subject: Subject
) -> Iterator[Finding]:
    """``ruleset`` as libnftables-json(5) has it; ``unread`` names tables whose rules are not in it."""
    findings = [*_of_nftables(ruleset, subject), *_of_iptables(legacy, subject)]
    for table in unread:
        change = f"look at `nft list table {table}`: it must drop neither INVALID nor ours on its way"
        findings.append(warning(_CHECK, f"table {table} belongs to a program and is not read here", change))
    return or_ok(findings, _CHECK, "no rule that is known to do harm")


def _of_nftables(ruleset: Iterable[Json], subject: Subject) -> Iterator[Finding]:
    found = parse(ruleset)
    closed = [chain for chain, hook in found.closed if hook in _PASSED]
    for rule in found.rules:
        is_last = rule.drops and not rule.conditions
        if is_last and rule.is_of_base and rule.hooks & _PASSED and rule.chain not in closed:
            closed.append(rule.chain)
    for chain in closed:
        yield _by_engine(subject)(_CHECK, _closed(chain), _accept(chain))
    for rule in found.rules:
        yield from _dropping(rule, subject)
        yield from _translating(rule, subject)


def _dropping(rule: Rule, subject: Subject) -> Iterator[Finding]:
    severity = _by_engine(subject) if len(rule.conditions) == 1 else warning
    states = rule.dropped_states
    if "invalid" in states and rule.hooks & _PASSED:
        found = f"{rule.chain} drops what connection tracking calls invalid, of which ours may be"
        yield severity(_CHECK, found, _accept(rule.chain))
    elif "new" in states and rule.matches_tcp_flags and _meets_adoption(rule, subject):
        yield fault(
            _CHECK,
            f"{rule.chain} drops new connections without SYN: adopted ones have none",
            f"start packetbridge with --adopt=off, or run `{rule.deletion}`",
        )
    elif rule.drops and rule.matches_way_back and "prerouting" in rule.hooks:
        found = f"{rule.chain} drops what comes from where no way leads back (uRPF), and ours comes by a TUN"
        yield severity(_CHECK, found, _accept(rule.chain))
    elif rule.drops and rule.is_opaque and rule.hooks & _PASSED:
        yield warning(
            _CHECK,
            f"{rule.chain} has a rule of iptables that drops packets and cannot be read here",
            f"look at `iptables-save`, chain {rule.chain.name}: it must drop neither INVALID nor ours",
        )


def _translating(rule: Rule, subject: Subject) -> Iterator[Finding]:
    """What connection tracking takes for the answers of a node's server, it does not translate."""
    meets_handoffs = subject.is_balancer and "postrouting" in rule.hooks and not rule.matches_source
    if rule.translates_sources and meets_handoffs:
        severity = _by_engine(subject) if rule.asks_for_nothing_but(_INTERFACES_OUT) else warning
        found = f"{rule.chain} gives what is sent another source: the client's has to stay"
        yield severity(_CHECK, found, _accept(rule.chain))


def _of_iptables(legacy: Iterable[LegacyChain], subject: Subject) -> Iterator[Finding]:
    for chain in legacy:
        name = f"chain {chain.name} of iptables-legacy's table {chain.table}"
        if chain.has_rules:
            yield warning(
                _CHECK,
                f"{name} has rules, which are not read here",
                f"look at `iptables-legacy-save -t {chain.table}`: it must drop neither INVALID nor ours",
            )
        elif chain.drops:
            accept = f"iptables-legacy -t {chain.table} -I {chain.name} -i l3dsr+ -j ACCEPT"
            yield _by_engine(subject)(_CHECK, _closed(name), f"run `{accept}`")


def _closed(chain: Chain | str) -> str:
    return f"{chain} drops what no rule accepts, and what the daemon sends is forwarded"


def _by_engine(subject: Subject) -> Callable[[str, str, str], Finding]:
    """What drops forwarded packets ends engine raw, and hurts engine ebpf at its edges."""
    return warning if subject.engine == "ebpf" else fault


def _accept(chain: Chain) -> str:
    rule = f'iifname "{TUN_NAMES}" accept'
    return f"run `nft insert rule {chain.family} {chain.table} {chain.name} {rule}`"


def _meets_adoption(rule: Rule, subject: Subject) -> bool:
    return subject.adopt and bool(rule.hooks & {"input", "prerouting"})
