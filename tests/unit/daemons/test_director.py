"""Who gets new flows: configuration, the operator's words and checks in, services for the data plane out."""

import logging
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from balancer.commands import BalancerCommands
from balancer.config import BalancerConfig, load
from balancer.core.loads import CountedLoads
from balancer.core.roster import Admin
from balancer.core.service import Service
from balancer.director import Director, PathMtu
from balancer.engine import BalancerEngine
from balancer.saved import SavedWords
from common.commands import Explain
from common.control import CommandError
from common.net.errors import HostError

LOGGER = logging.getLogger("director-test")
ADDRESSES = {"a": "10.0.0.2", "b": "10.0.0.3", "c": "10.0.0.4"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def configured(directory: Path, **services: str) -> BalancerConfig:
    """Services, each with a pool of its own, whose nodes are named by their letters."""
    lines = ["insecure = true"]
    for number, name in enumerate(services, 1):
        lines += ["[[service]]", f'name = "{name}"', f'listen = "10.0.1.{number}:80"', f"dscp = {number}"]
        lines += [f'pool = "{name}"']
    for name, nodes in services.items():
        lines += ["[[pool]]", f'name = "{name}"']
        for node in nodes:
            lines += ["[[pool.node]]", f'name = "{node}"', f'address = "{ADDRESSES[node]}"']
    file = directory / "balancer.toml"
    file.write_text("\n".join(lines))
    return load(["--config", str(file)])


def director_of(config: BalancerConfig, directory: Path, path_mtu: PathMtu = lambda _: 1500) -> Director:
    return Director(config, path_mtu, SavedWords(directory, LOGGER), LOGGER)


def shares(director: Director, index: int) -> dict[str, float]:
    return {name: round(share, 2) for name, share in director.served[index].shares.items()}


def test_a_drained_node_is_drained_in_a_service_that_gets_it_later(directory: Path) -> None:
    director = director_of(configured(directory, www="ab", api="c"), directory)
    director.set_admin("a", Admin.DRAIN)
    director.configure(configured(directory, www="ab", api="ac"))
    assert [state.state for state in director.states(director.served[2])] == ["drain", "up"]
    assert (shares(director, 1), shares(director, 2)) == ({"b": 1.0}, {"c": 1.0})
    director.set_admin("a", Admin.READY)
    director.configure(configured(directory, www="ab", api="ac"))
    assert shares(director, 1) == {"a": 0.5, "b": 0.5}
    assert shares(director, 2) == {"a": 0.5, "c": 0.5}


def test_a_drained_node_is_drained_when_it_comes_back_into_the_configuration(directory: Path) -> None:
    director = director_of(configured(directory, www="ab"), directory)
    director.set_admin("a", Admin.DRAIN)
    director.configure(configured(directory, www="b"))
    director.configure(configured(directory, www="ab"))
    assert shares(director, 1) == {"b": 1.0}


def test_path_mtus_are_followed_and_a_lost_route_changes_nothing(directory: Path) -> None:
    mtus: dict[str, int | None] = dict.fromkeys(ADDRESSES.values(), 1500)
    asked_in: list[int] = []

    def path_mtu(address: IPv4Address) -> int:
        asked_in.append(threading.get_ident())
        mtu = mtus[str(address)]
        if mtu is None:
            raise HostError("no route")
        return mtu

    def payloads() -> list[int]:
        return [service.max_payload for service in director.services]

    async def look() -> None:
        director.look_at_paths()
        with trio.move_on_after(0.3):
            await director.run()

    director = director_of(configured(directory, www="ab", api="bc"), directory, path_mtu)
    director.direct(cast(BalancerEngine, Refusing()))
    whole, _ = payloads()
    assert len(asked_in) == len(ADDRESSES)
    mtus[ADDRESSES["a"]] = 1400
    trio.run(look)
    assert payloads() == [whole - 100, whole]
    mtus[ADDRESSES["a"]] = None
    mtus[ADDRESSES["c"]] = 60
    trio.run(look)
    assert payloads() == [whole - 100, whole]
    assert threading.get_ident() not in asked_in[len(ADDRESSES) :]
    with pytest.raises(HostError, match="no route"):
        director.configure(configured(directory, www="a"))
    assert director.generation == 1


class Refusing:
    """A plane that takes nothing while it `refuses`."""

    def __init__(self) -> None:
        self.refuses = False
        self.taken: list[Sequence[Service]] = []
        self.loads = CountedLoads()
        self.engine = SimpleNamespace(apply=self._apply)

    def _apply(self, services: Sequence[Service]) -> None:
        if self.refuses:
            raise HostError("no room")
        self.taken.append(services)


def test_what_a_plane_refuses_is_tried_again_and_said_once(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plane = Refusing()
    director = director_of(configured(directory, www="ab"), directory)
    director.direct(cast(BalancerEngine, plane))
    plane.refuses = True
    director.set_admin("a", Admin.DRAIN)

    async def wait(ticks: int) -> None:
        with trio.move_on_after(ticks + 0.5):
            await director.run()

    trio.run(wait, 2)
    assert shares(director, 1) == {"a": 0.5, "b": 0.5}
    assert [record.message for record in caplog.records if "does not take" in record.message] == [
        "the data plane does not take what has changed: no room"
    ]
    plane.refuses = False
    trio.run(wait, 1)
    assert shares(director, 1) == {"b": 1.0}
    assert len(plane.taken) == 1


@pytest.mark.parametrize("url", ["http://[", "/a b"])
def test_no_url_is_refused_in_words(directory: Path, url: str) -> None:
    director = director_of(configured(directory, www="ab"), directory)
    director.direct(cast(BalancerEngine, Refusing()))
    nobody: Any = None
    commands = BalancerCommands(nobody, director, nobody, nobody, nobody, nobody)

    async def ask() -> None:
        with pytest.raises(CommandError):
            await commands.all()["explain"].answer(Explain(url=url))  # type: ignore[misc]

    trio.run(ask)


def test_flows_handed_over_since_a_node_was_asked_count_beside_its_word(directory: Path) -> None:
    """The word may have crossed them on its way."""
    director, plane = director_of(configured(directory, www="ab"), directory), Refusing()
    node = bytes([10, 0, 0, 2])
    director.direct(cast(BalancerEngine, plane))
    plane.loads.configure(1, {node: 10, bytes([10, 0, 0, 3]): 10}, 0)
    plane.loads.count(1, node)
    director.ask(node)
    plane.loads.count(1, node)
    plane.loads.count(1, node)
    director.hear(node, {1: 5})
    assert plane.loads.of(1, node).flows == 7
    director.ask(node)
    director.hear(node, {1: 6})
    assert plane.loads.of(1, node).flows == 6
    director.hear(node, None)
    assert plane.loads.of(1, node).flows is None
