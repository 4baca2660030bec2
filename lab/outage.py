"""What the demo shows of nodes that fail and nodes that are drained: only their own URLs move."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from lab.errors import LabError
from lab.showing import show, step
from lab.testbed import Lab

SETTLING_SECONDS = 30
POLL_SECONDS = 0.1
DRAINING_FILE = "1m"
DRAINING_RATE = 400_000
"""Bytes per second of the download that keeps a node from being drained: it takes two to three seconds."""
MANY = 1000
"""Of as many URLs one belongs to any node."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One request, over a connection of its own."""

    url: str
    node: str
    client: str
    """The client's address as NGINX saw it."""


class Outage:
    """`before` says which node each URL belongs to; `fetch` gets paths, each once, and fails if one does."""

    def __init__(
        self, lab: Lab, before: Mapping[str, str], fetch: Callable[[Sequence[str]], list[Fetched]]
    ) -> None:
        self._lab = lab
        self._vip = lab.topology.service.vip
        self._before = {urlsplit(url).path: node for url, node in before.items()}
        self._fetch = fetch
        self._problems: list[str] = []

    def run(self) -> list[str]:
        """What was not as it has to be."""
        lost, drained = (node.name for node in self._lab.topology.nodes[1:3])
        self._lose(lost)
        self._drain(drained)
        return self._problems

    def _lose(self, lost: str) -> None:
        nginx = self._lab.nginx[lost]
        with step(f"Stopping NGINX on {lost}, and fetching the others' URLs meanwhile"):
            nginx.stop()
            fetched = self._fetch_others(lost, lambda: self._state(lost) != "up")
        show(f"The balancer says: {lost} is {self._state(lost)}: {self._report(lost)['reason']}.")
        self._judge(fetched, lost)
        with step(f"Fetching {lost}'s URLs"):
            moved = self._fetch(self._urls_of(lost))
        self._show_new_homes(lost, moved)
        with step(f"Starting NGINX on {lost} again, and waiting until the balancer trusts it"):
            nginx.start()
            self._wait_until(lambda: self._state(lost) == "up", f"{lost} does not come up again")

    def _drain(self, drained: str) -> None:
        """A download that has begun ends where it is."""
        client, target = self._lab.client, self._lab.client.directory / "while-draining"
        path = self._slow_path_of(drained)
        with step(f"Draining {drained} while a download from it is under way"):
            asked = ["curl", "-sS", "--fail", "-o", str(target), f"http://{self._vip}{path}"]
            download = client.start(asked)
            self._wait_until(target.exists, "the download does not begin")
            draining = self._lab.start_tool(self._lab.balancer, "drain", drained, "--wait")
            fetched = self._fetch_others(drained, lambda: not draining.running)
        whole = download.wait(SETTLING_SECONDS) == 0 and target.stat().st_size == self._lab.content.size(
            DRAINING_FILE
        )
        show(f"The download {'came to its end' if whole else 'BROKE OFF'}; `l3dsr drain` waited for it.")
        if not whole:
            self._problems.append("draining broke a download off")
        if draining.wait() != 0:
            self._problems.append(f"l3dsr drain {drained} --wait failed")
        self._judge(fetched, drained)
        with step(f"Fetching {drained}'s URLs"):
            moved = self._fetch(self._urls_of(drained))
        self._show_new_homes(drained, moved)
        self._lab.tool(self._lab.balancer, "undrain", drained)

    def _fetch_others(self, node: str, is_over: Callable[[], bool]) -> list[Fetched]:
        """Everybody else's URLs, over and over, until `is_over`, and once more."""
        others = [path for path, owner in self._before.items() if owner != node]
        fetched: list[Fetched] = []
        deadline = time.monotonic() + SETTLING_SECONDS
        ending = False
        while not ending:
            ending = is_over()
            if time.monotonic() > deadline:
                raise LabError(f"the balancer does not notice what becomes of {node}")
            fetched += self._fetch(others)
        return fetched

    def _judge(self, fetched: Sequence[Fetched], node: str) -> None:
        """None has failed, or `fetch` would have; has any moved?"""
        moved = sum(self._before[urlsplit(one.url).path] != one.node for one in fetched)
        show(f"{len(fetched)} requests for URLs of other nodes: none failed, {moved} moved.")
        if moved > len(fetched) * 0.02:
            self._problems.append(f"{moved} of {len(fetched)} URLs of others moved on account of {node}")

    def _show_new_homes(self, node: str, moved: Sequence[Fetched]) -> None:
        homes = Counter(one.node for one in moved)
        where = ", ".join(f"{count} on {name}" for name, count in sorted(homes.items()))
        show(f"{node}'s {len(moved)} URLs are served all the same: {where}.")
        if homes[node]:
            self._problems.append(f"{node} still gets new connections")

    def _urls_of(self, node: str) -> list[str]:
        return [path for path, owner in self._before.items() if owner == node]

    def _slow_path_of(self, node: str) -> str:
        """The tool knows the node of every URL."""
        for number in range(MANY):
            path = f"/slow/file/{DRAINING_RATE + number}/{DRAINING_FILE}"
            shown = self._lab.tool(self._lab.balancer, "explain", "--json", path).stdout
            if json.loads(shown)["node"] == node:
                return path
        raise LabError(f"none of {MANY} URLs belongs to {node}")

    def _report(self, name: str) -> dict[str, str]:
        shown = self._lab.tool(self._lab.balancer, "status", "--json").stdout
        (service,) = json.loads(shown)["services"]
        (node,) = [node for node in service["nodes"] if node["name"] == name]
        return dict(node)

    def _state(self, name: str) -> str:
        return self._report(name)["state"]

    def _wait_until(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + SETTLING_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(complaint)
            time.sleep(POLL_SECONDS)
