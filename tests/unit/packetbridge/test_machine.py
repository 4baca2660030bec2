"""The state machine's table."""

import pytest

from packetbridge.core import machine
from packetbridge.core.actions import ACTIONS
from packetbridge.core.machine import RULES, Event, Rule, State
from packetbridge.core.service import Service
from tests.unit.packetbridge.scene import (
    OTHER_SERVICE,
    SERVICE,
    Scene,
    from_client,
    handoff,
    syn_ack,
)


def test_every_rule_has_an_action_and_every_action_a_rule() -> None:
    assert {rule.action for rule in RULES.values()} == set(ACTIONS)


def test_every_state_is_reached_and_every_event_is_met() -> None:
    assert {rule.next for rule in RULES.values()} == set(State)
    assert {event for _, event in RULES} == set(Event)


def test_nothing_leaves_the_end() -> None:
    assert not [state for state, _ in RULES if state is State.ENDED]


def test_the_table_drives_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**RULES, (State.OPENING, Event.CLIENT_SEGMENT): Rule(State.ENDED, "abort_opening")}
    monkeypatch.setattr("packetbridge.core.engine.RULES", changed)
    scene = Scene()
    scene.balancer(handoff())
    assert len(scene.balancer(from_client())) == 1
    assert scene.core.sizes["tombstones"] == 1


def test_event_out_of_place_is_counted_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {pair: rule for pair, rule in RULES.items() if pair[1] is not Event.SYN_ACK_WITH_TIMESTAMPS}
    monkeypatch.setattr("packetbridge.core.engine.RULES", fewer)
    scene = Scene()
    assert scene.open() == []
    assert scene.counters["event_out_of_place"] == 1
    monkeypatch.setattr("packetbridge.core.engine.RULES", machine.RULES)
    assert len(scene.backend(syn_ack())) == 1


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ((SERVICE, OTHER_SERVICE._replace(vip_index=1)), "two VIPs have the index 1"),
        (
            (SERVICE, OTHER_SERVICE._replace(backend=SERVICE.backend)),
            r"two VIPs share the backend 192\.168\.33\.30:8080",
        ),
        ((SERVICE._replace(vip_index=0),), "VIP index 0 is not within 1 to 63"),
        ((SERVICE._replace(vip_index=64),), "VIP index 64 is not within 1 to 63"),
    ],
)
def test_services_that_could_not_be_told_apart_are_refused(
    services: tuple[Service, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(*services)


def test_services_on_one_backend_address_with_different_ports_are_served() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE._replace(backend=SERVICE.backend, backend_port=8081))
    assert len(scene.balancer(handoff(index=2))) == 1
