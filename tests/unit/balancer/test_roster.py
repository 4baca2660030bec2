"""Which nodes get new flows, and how many: checks, the operator's word, slow start, reloads."""

import json
import random
from typing import Any

import pytest

from balancer.core.hearsay import Failure
from balancer.core.probe import CheckResult
from balancer.core.roster import RULES, STEPS, Admin, Event, Member, NoNode, Roster, Settings, State
from common.hashing.maglev import build

GOOD = CheckResult(True, None, "status 200", 0.01)
REFUSED = CheckResult(False, Failure.BACKEND_REFUSED, "the backend refuses connections", 0.01)
SILENT = CheckResult(False, Failure.BRIDGE_SILENT, "no answer", 1.0)


def members(*weights: int) -> list[Member]:
    return [Member(f"n{at}", bytes([10, 0, 0, at]), weight) for at, weight in enumerate(weights, 1)]


def roster(*weights: int, **settings: Any) -> Roster:
    return Roster(members(*weights or (1, 1)), Settings(**settings))


def fail(nodes: Roster, node: str, times: int, now: float = 0.0, result: CheckResult = REFUSED) -> list[str]:
    return [change.text for _ in range(times) for change in nodes.check_result(node, result, now)]


def whole(*weights: int) -> dict[str, int]:
    return {f"n{at}": STEPS * weight for at, weight in enumerate(weights, 1)}


def states(nodes: Roster, now: float = 0.0) -> list[str]:
    return [state.state for state in nodes.states(now)]


def test_node_counts_as_up_before_its_first_verdict() -> None:
    nodes = roster(1, 3)
    assert nodes.weights(0.0) == whole(1, 3)
    assert states(nodes) == ["up", "up"]
    assert [state.checked for state in nodes.states(5.0)] == [None, None]


def test_only_failures_in_a_row_take_a_node_down() -> None:
    nodes = roster(fall=3)
    assert fail(nodes, "n1", 2) == []
    assert nodes.check_result("n1", GOOD, 0.0) == []
    assert fail(nodes, "n1", 2) == []
    assert fail(nodes, "n1", 1) == ["node n1 is down: the backend refuses connections"]
    assert nodes.weights(0.0) == whole(0, 1)
    assert [(state.state, state.reason) for state in nodes.states(0.0)] == [
        ("down", "the backend refuses connections"),
        ("up", ""),
    ]


def test_only_successes_in_a_row_bring_a_node_back() -> None:
    nodes = roster(fall=1, rise=2)
    fail(nodes, "n1", 1)
    assert nodes.check_result("n1", GOOD, 1.0) == []
    assert fail(nodes, "n1", 1) == []
    assert nodes.check_result("n1", GOOD, 1.0) == []
    (change,) = nodes.check_result("n1", GOOD, 1.0)
    assert (change.before, change.after) == (State.DOWN, State.UP)
    assert nodes.weights(1.0) == whole(1, 1)


def test_another_reason_of_being_down_is_said_once() -> None:
    nodes = roster(fall=1)
    (change,) = nodes.check_result("n1", SILENT, 0.0)
    assert change.has_failed
    assert fail(nodes, "n1", 2) == ["node n1 is still down: the backend refuses connections"]
    (change,) = nodes.check_result("n1", SILENT, 0.0)
    assert not change.has_failed


def test_draining_node_gets_nothing_and_is_still_checked() -> None:
    nodes = roster(fall=1, rise=1)
    nodes.set_admin("n1", Admin.DRAIN, 0.0)
    assert nodes.weights(0.0) == whole(0, 1)
    assert nodes.is_to_be_checked("n1")
    (change,) = nodes.check_result("n1", REFUSED, 0.0)
    assert change.has_failed
    assert (states(nodes)[0], nodes.states(0.0)[0].reason) == ("drain", "the backend refuses connections")
    nodes.set_admin("n1", Admin.READY, 0.0)
    assert states(nodes)[0] == "down"


def test_node_in_maintenance_is_not_checked_and_one_failure_afterwards_is_enough() -> None:
    nodes = roster(fall=3)
    nodes.set_admin("n1", Admin.MAINTENANCE, 0.0)
    assert not nodes.is_to_be_checked("n1")
    assert fail(nodes, "n1", 5) == []
    nodes.set_admin("n1", Admin.READY, 0.0)
    assert states(nodes)[0] == "up"
    assert len(fail(nodes, "n1", 1)) == 1
    assert states(nodes)[0] == "down"


def test_same_wish_again_changes_nothing() -> None:
    nodes = roster()
    assert nodes.set_admin("n1", Admin.READY, 0.0) == []
    assert len(nodes.set_admin("n1", Admin.DRAIN, 0.0)) == 1
    assert nodes.set_admin("n1", Admin.DRAIN, 0.0) == []


def test_unknown_node_is_a_key_error_for_the_operator_and_nothing_for_a_late_check() -> None:
    nodes = roster()
    with pytest.raises(KeyError):
        nodes.set_admin("n9", Admin.DRAIN, 0.0)
    with pytest.raises(KeyError):
        nodes.set_weight("n9", 1)
    assert nodes.check_result("n9", REFUSED, 0.0) == []


def test_operators_weight_stands_before_the_configured_one_until_it_is_taken_back() -> None:
    nodes = roster(2, 2)
    (change,) = nodes.set_weight("n1", 5)
    assert change.text == "node n1 has weight 5, no longer 2"
    nodes.configure(members(3, 2), Settings(), 0.0)
    assert nodes.weights(0.0) == whole(5, 2)
    nodes.set_weight("n1", None)
    assert nodes.weights(0.0) == whole(3, 2)
    assert nodes.set_weight("n1", 3) == []


def test_recovered_node_grows_by_tenths_and_says_when_next() -> None:
    nodes = roster(7, 7, fall=1, rise=1, slow_start=90.0)
    fail(nodes, "n1", 1)
    nodes.check_result("n1", GOOD, 1000.0)
    grown = []
    now = 1000.0
    while now is not None:
        grown.append((now - 1000.0, nodes.weights(now)["n1"]))
        deadline = nodes.next_deadline(now)
        if deadline is None:
            break
        assert nodes.weights(deadline - 0.001) == nodes.weights(now)
        now = deadline
    assert [at for at, _ in grown] == pytest.approx([10.0 * step for step in range(10)])
    assert [weight for _, weight in grown] == [7 * (step + 1) for step in range(10)]
    assert nodes.weights(1045.0)["n2"] == 70
    assert nodes.states(1000.0)[0].effective_weight == pytest.approx(0.7)


def test_drained_node_comes_back_with_its_whole_weight_and_one_from_maintenance_slowly() -> None:
    nodes = roster(slow_start=10.0)
    for node, wish in (("n1", Admin.DRAIN), ("n2", Admin.MAINTENANCE)):
        nodes.set_admin(node, wish, 0.0)
        nodes.set_admin(node, Admin.READY, 5.0)
    assert nodes.weights(5.0) == {"n1": 10, "n2": 1}


def test_with_no_node_up_nobody_gets_new_flows_unless_all_are_to_be_tried() -> None:
    for no_node, expected in ((NoNode.REFUSE, whole(0, 0, 0, 0)), (NoNode.ALL, whole(1, 2, 0, 0))):
        nodes = roster(1, 2, 3, 4, fall=1, no_node=no_node, slow_start=60.0)
        nodes.set_admin("n3", Admin.DRAIN, 0.0)
        nodes.set_admin("n4", Admin.MAINTENANCE, 0.0)
        assert nodes.weights(0.0) == whole(1, 2, 0, 0)
        for node in ("n1", "n2"):
            fail(nodes, node, 1)
        assert nodes.weights(0.0) == expected


def test_reload_keeps_what_is_known_of_nodes_that_stay() -> None:
    nodes = roster(1, 1, 1, fall=1)
    fail(nodes, "n1", 1, 3.0)
    nodes.set_admin("n2", Admin.DRAIN, 0.0)
    assert nodes.configure(members(4, 4, 4, 4)[:2] + members(1, 1, 1, 1)[3:], Settings(fall=1), 5.0) == []
    assert [(state.name, state.state) for state in nodes.states(5.0)] == [
        ("n1", "down"),
        ("n2", "drain"),
        ("n4", "up"),
    ]
    assert nodes.states(5.0)[0].checked == pytest.approx(2.0)
    assert nodes.weights(5.0) == {"n1": 0, "n2": 0, "n4": 10}


def test_name_at_another_address_keeps_the_operators_word_only() -> None:
    nodes = roster(1, 1, fall=1)
    fail(nodes, "n1", 1)
    nodes.set_admin("n1", Admin.DRAIN, 0.0)
    nodes.set_weight("n1", 6)
    nodes.configure([Member("n1", bytes([10, 9, 9, 9]), 1)], Settings(fall=1), 0.0)
    (state,) = nodes.states(0.0)
    assert (state.state, state.reason, state.weight, state.checked) == ("drain", "", 6, None)
    nodes.set_admin("n1", Admin.READY, 0.0)
    assert states(nodes) == ["up"]


def test_reload_without_checks_brings_failed_nodes_back() -> None:
    nodes = roster(fall=1)
    fail(nodes, "n1", 1)
    (change,) = nodes.configure(members(1, 1), Settings(is_checked=False), 0.0)
    assert change.text == "node n1 is up: its checks are switched off"
    assert not nodes.is_to_be_checked("n1")
    assert fail(nodes, "n1", 5) == []


def test_operators_word_survives_as_json() -> None:
    nodes = roster(1, 1, 1, fall=1)
    nodes.set_admin("n1", Admin.DRAIN, 0.0)
    fail(nodes, "n1", 1)
    nodes.set_admin("n2", Admin.MAINTENANCE, 0.0)
    nodes.set_weight("n3", 0)
    saved = json.loads(json.dumps(nodes.to_saved()))
    assert saved == {"n1": {"admin": "drain"}, "n2": {"admin": "maintenance"}, "n3": {"weight": 0}}
    later = roster(1, 1, 1)
    later.from_saved(saved, 0.0)
    assert states(later) == ["drain", "maintenance", "up"]
    assert later.to_saved() == saved


@pytest.mark.parametrize(
    "word",
    [
        None,
        3,
        [],
        {"admin": 7},
        {"admin": []},
        {"admin": "on fire"},
        {"weight": "x"},
        {"weight": -1},
        {"weight": 1001},
        {"weight": True},
    ],
)
def test_saved_word_that_makes_no_sense_is_skipped(word: object) -> None:
    nodes = roster()
    nodes.from_saved({"n1": word, "n7": {"admin": "drain"}}, 0.0)
    assert nodes.to_saved() == {}


def test_rules_lead_from_every_state_to_up_and_never_to_where_they_began() -> None:
    assert all(before is not after for (before, _), after in RULES.items())
    for state in State:
        reached = {state}
        for _ in State:
            reached |= {after for (before, _), after in RULES.items() if before in reached}
        assert State.UP in reached
    assert {event for _, event in RULES} == set(Event)


def test_random_events_keep_weights_in_step_with_states() -> None:
    chance = random.Random(4)
    nodes = roster(1, 2, 3, 0, fall=2, rise=2, slow_start=5.0)
    now, seen = 0.0, set()
    for _ in range(5000):
        now += chance.random()
        node = f"n{chance.randint(1, 4)}"
        if chance.random() < 0.8:
            nodes.check_result(node, chance.choice((GOOD, REFUSED)), now)
        else:
            nodes.set_admin(node, chance.choice(list(Admin)), now)
        weights = nodes.weights(now)
        for state in nodes.states(now):
            seen.add(state.state)
            assert 0 <= weights[state.name] <= STEPS * state.weight
            assert bool(weights[state.name]) == (state.state == "up" and state.weight > 0)
            assert bool(state.reason) <= (state.state in ("down", "drain"))
        deadline = nodes.next_deadline(now)
        assert deadline is None or now < deadline <= now + 5.0
    assert seen == {"up", "down", "drain", "maintenance"}


@pytest.mark.parametrize("count", [3, 5, 10, 20, 50])
def test_failed_node_moves_its_share_of_the_lookup_table_and_at_most_two_percent_more(count: int) -> None:
    chance = random.Random(count)
    nodes = Roster(
        [Member(f"node-{chance.randrange(10**6)}", bytes([10, 0, 1, at]), 1) for at in range(count)],
        Settings(fall=1),
    )
    before = build(nodes.weights(0.0))
    failed = chance.choice(before.names)
    nodes.check_result(failed, SILENT, 0.0)
    after = build(nodes.weights(0.0))
    owners = [
        (before.names[one], after.names[other]) for one, other in zip(before.slots, after.slots, strict=True)
    ]
    moved = sum(one != other for one, other in owners if one != failed)
    assert failed not in after.names
    assert moved / len(owners) <= 0.02
