"""Who gets new flows: configuration, the operator's words and checks in, services for the data plane out."""

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from balancer.commands import BalancerCommands
from balancer.config import BalancerConfig, load
from balancer.core.loads import CountedLoads
from balancer.core.roster import Admin
from balancer.core.service import Service
from balancer.director import Director
from balancer.engine import BalancerEngine
from balancer.paths import PathMtu
from balancer.saved import SavedWords
from common.commands import BALANCER, Explain
from common.control import CommandError
from common.net.errors import HostError
from common.reports import Explanation

LOGGER = logging.getLogger("director-test")
NODE = bytes([10, 0, 0, 2])
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


def test_what_the_operator_said_before_is_logged_at_the_start_and_where_it_applies_anew(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = director_of(configured(directory, www="ab"), directory)
    before.set_admin("a", Admin.DRAIN)
    before.set_weight("b", 7)
    caplog.set_level(logging.INFO)
    caplog.clear()
    director = director_of(configured(directory, www="ab"), directory)
    drained = "node a is draining: the operator wants it"
    assert caplog.messages == [f"service www: {drained}", "service www: node b has weight 7, no longer 1"]
    caplog.clear()
    director.configure(configured(directory, www="ab", api="a"))
    assert caplog.messages == [f"service api: {drained}"]


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
        before = len(asked_in)
        director.look_at_paths()
        await running(director, lambda: len(asked_in) == before + len(ADDRESSES))

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
    director.configure(configured(directory, www="a"))
    assert payloads() == [whole - 100]


def test_a_node_without_a_route_is_said_and_does_not_keep_the_others_from_being_served(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mtus = {ADDRESSES["a"]: 1500}

    def path_mtu(address: IPv4Address) -> int:
        if str(address) not in mtus:
            raise HostError(f"no route to {address}")
        return mtus[str(address)]

    with pytest.raises(HostError, match="no route"):
        director_of(configured(directory, www="a", api="b"), directory, path_mtu)
    caplog.set_level(logging.INFO)
    caplog.clear()
    director = director_of(configured(directory, www="ab"), directory, path_mtu)
    director.direct(cast(BalancerEngine, Refusing()))
    (whole,) = (service.max_payload for service in director.services)
    director.configure(configured(directory, www="ab"))
    with pytest.raises(HostError, match="no route"):
        director.configure(configured(directory, www="abc"))
    assert director.generation == 2

    mtus[ADDRESSES["b"]] = 1400
    director.look_at_paths()
    trio.run(running, director, lambda: len(caplog.messages) == 2)
    assert [service.max_payload for service in director.services] == [whole - 100]
    assert caplog.messages == ["no route to 10.0.0.3", "no longer: no route to 10.0.0.3"]


async def running(director: Director, is_so: Callable[[], bool]) -> None:
    """Until that comes about, and a moment longer."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(director.run)
            while not is_so():  # noqa: ASYNC110 - whatever a test waits for
                await trio.sleep(0.01)
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()


class Refusing:
    """A plane that takes nothing while it `refuses`."""

    def __init__(self) -> None:
        self.refuses = False
        self.asked = 0
        self.taken: list[Sequence[Service]] = []
        self.loads = CountedLoads()
        self.engine = SimpleNamespace(apply=self._apply)

    def _apply(self, services: Sequence[Service]) -> None:
        self.asked += 1
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

    async def refused() -> None:
        await running(director, lambda: plane.asked >= 3)

    async def taken() -> None:
        await running(director, lambda: bool(plane.taken))

    trio.run(refused)
    assert shares(director, 1) == {"a": 0.5, "b": 0.5}
    assert [record.message for record in caplog.records if "does not take" in record.message] == [
        "the data plane does not take what has changed: no room"
    ]
    plane.refuses = False
    trio.run(taken)
    assert shares(director, 1) == {"b": 1.0}
    assert len(plane.taken) == 1


def explained(director: Director, url: str) -> Explanation:
    nobody: Any = None
    commands = BalancerCommands(nobody, director, nobody, nobody, nobody, nobody)
    answer = cast(Callable[[Explain], Awaitable[Explanation]], commands.all()["explain"].answer)
    return trio.run(answer, Explain(url=url))


@pytest.mark.parametrize("url", ["", "http://[", "/a b", "/" + 9216 * "a"])
def test_no_url_is_refused_in_words(directory: Path, url: str) -> None:
    director = director_of(configured(directory, www="ab"), directory)
    director.direct(cast(BalancerEngine, Refusing()))
    with pytest.raises(CommandError, match="URL"):
        explained(director, url)


def test_a_url_s_address_and_scheme_say_which_service_is_meant(directory: Path) -> None:
    file = directory / "balancer.toml"
    configured(directory, www="ab", api="c")
    more = ["", "[[service]]", 'name = "tls"', 'listen = "10.0.1.1:443"', "dscp = 9", 'pool = "www"']
    file.write_text(file.read_text() + "\n".join(more))
    director = director_of(load(["--config", str(file)]), directory)
    director.direct(cast(BalancerEngine, Refusing()))
    for url, name in {
        "http://10.0.1.1/a": "www",
        "HTTP://10.0.1.1:80/a": "www",
        "https://10.0.1.1/a": "tls",
        "http://10.0.1.1:443/a": "tls",
        "http://10.0.1.2/a": "api",
    }.items():
        assert explained(director, url).service == name
    with pytest.raises(
        CommandError, match=r"no service listens on 10\.0\.1\.3:80: there are www at 10\.0\.1"
    ):
        explained(director, "http://10.0.1.3/a")
    with pytest.raises(CommandError, match="which service is meant"):
        explained(director, "http://www.example/a")


def test_a_url_of_the_greatest_size_that_is_served_is_explained(directory: Path) -> None:
    director = director_of(configured(directory, www="ab"), directory)
    director.direct(cast(BalancerEngine, Refusing()))
    url = "/" + 9215 * "a"
    asked = msgspec.convert({"url": url}, BALANCER["explain"])
    assert asked == Explain(url=url)
    assert explained(director, url).key == url


@pytest.fixture
def loaded(directory: Path) -> tuple[Director, CountedLoads]:
    """Two nodes that have said nothing yet."""
    director, plane = director_of(configured(directory, www="ab"), directory), Refusing()
    director.direct(cast(BalancerEngine, plane))
    plane.loads.configure(1, {NODE: 10, bytes([10, 0, 0, 3]): 10}, 0)
    return director, plane.loads


def test_flows_handed_over_since_a_node_was_asked_count_beside_its_first_word(
    loaded: tuple[Director, CountedLoads],
) -> None:
    """It is asked again where an answer is late."""
    director, loads = loaded
    loads.count(1, NODE)
    director.ask(NODE, 100.0)
    loads.count(1, NODE)
    director.ask(NODE, 100.25)
    loads.count(1, NODE)
    director.hear(NODE, {1: 5}, 100.25)
    assert loads.of(1, NODE).flows == 6
    director.ask(NODE, 101.0)
    director.hear(NODE, {1: 3}, 101.0)
    assert loads.of(1, NODE).flows == 3
    director.hear_nothing(NODE)
    assert loads.of(1, NODE).flows is None


@pytest.mark.parametrize(
    ("said", "taken"),
    [(5, 8), (7, 8), (8, 8), (9, 9), (2, 5), (0, 3)],
    ids=[
        "none of them",
        "some",
        "all",
        "flows of another balancer",
        "two have ended",
        "all before have ended",
    ],
)
def test_flows_that_cross_a_nodes_word_are_counted_once(
    loaded: tuple[Director, CountedLoads], said: int, taken: int
) -> None:
    director, loads = loaded
    director.ask(NODE, 100.0)
    director.hear(NODE, {1: 5}, 100.0)
    director.ask(NODE, 101.0)
    for _ in range(3):
        loads.count(1, NODE)
    director.hear(NODE, {1: said}, 101.0)
    assert loads.of(1, NODE).flows == taken


def test_flows_handed_over_before_a_reload_count_beside_the_word_that_comes_after_it(
    loaded: tuple[Director, CountedLoads], directory: Path
) -> None:
    director, loads = loaded
    director.ask(NODE, 100.0)
    loads.count(1, NODE)
    director.configure(configured(directory, www="ac"))
    director.hear(NODE, {1: 5}, 100.0)
    assert loads.of(1, NODE).flows == 6
    director.configure(configured(directory, www="bc"))
    director.configure(configured(directory, www="ac"))
    director.hear_nothing(NODE)
    director.hear(NODE, {1: 5}, 100.0)
    assert loads.of(1, NODE).flows == 5
