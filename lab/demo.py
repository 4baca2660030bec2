"""`python -m lab.demo [--engine ENGINE]`: what this project does, in a minute, on a lab of its own.

What is shown is measured, and held against what it has to be. The last line on standard output is for
programs: `demo: ok` with the figures, or `demo: failed` with what was wrong, and exit code 1.
"""

import argparse
import hashlib
import io
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from common.config import AUTO, ENGINES
from lab.errors import LabError
from lab.outage import Fetched, Outage
from lab.showing import show, show_bar, show_command, sign_of_life, step
from lab.testbed import Lab

UNKNOWN = "unknown"
"""The engine before a daemon has said it."""
URLS = 300
BATCH = 50
"""URLs that one curl fetches, between two signs of progress."""
LEAST_SHARE = 0.2
MOST_BALANCER_BYTES = 0.1
"""Per byte delivered; if the answers crossed the balancer it would be 2."""
LARGE_FILE = "100m"
LARGE_FILE_MIB = 100
POSTED_FILE = "4k"
TIMED_DOWNLOADS = 3
PROGRAM_SECONDS = 30
LOG_SECONDS = 2
"""Within which NGINX has written a line about what curl has got already."""
REQUEST_ID = "l3dsr-demo"

PICTURE = """\
     client ── request ──▶ balancer ── handoff ──▶ the node that the URL hashes to
        ▲                                                 │
        └───────── answer, past the balancer ─────────────┘
"""


@dataclass(frozen=True, slots=True)
class Spreading:
    """Which node each URL went to, both times."""

    first: Mapping[str, str]
    second: Mapping[str, str]
    nodes: Sequence[str]

    @property
    def counts(self) -> dict[str, int]:
        """URLs by node."""
        counter = Counter(self.first.values())
        return {node: counter[node] for node in self.nodes}

    @property
    def same(self) -> int:
        return sum(self.second.get(url) == node for url, node in self.first.items())

    @property
    def affinity(self) -> float:
        return self.same / len(self.first)

    @property
    def least_share(self) -> float:
        return min(self.counts.values()) / len(self.first)


@dataclass(frozen=True, slots=True)
class Download:
    node: str
    md5: str
    balancer_bytes: int
    """In and out on the balancer's link while it ran."""
    size: int

    @property
    def balancer_bytes_ratio(self) -> float:
        return self.balancer_bytes / self.size


@dataclass(frozen=True, slots=True)
class Findings:
    engine: str
    spreading: Spreading
    download: Download
    gbit: float
    direct_gbit: float
    problems: Sequence[str]

    @property
    def line(self) -> str:
        """For programs."""
        if self.problems:
            return failure("; ".join(self.problems), self.engine)
        return (
            f"demo: ok engine={self.engine}"
            f" urls={len(self.spreading.first)} nodes={len(self.spreading.nodes)}"
            f" affinity={self.spreading.affinity:.3f} least_share={self.spreading.least_share:.2f}"
            f" balancer_bytes_ratio={self.download.balancer_bytes_ratio:.4f}"
            f" gbit={self.gbit:.1f} direct_gbit={self.direct_gbit:.1f}"
        )


def failure(reason: str, engine: str = UNKNOWN) -> str:
    """For programs, too: one line, whatever the reason looks like."""
    first_line = reason.partition("\n")[0]
    return f"demo: failed engine={engine} {first_line}"


class Demo:
    """Runs the steps and prints what they show. `problems` gathers what is not as it has to be."""

    def __init__(self, lab: Lab) -> None:
        self.problems: list[str] = []
        self._lab = lab
        self._vip = str(lab.topology.service.vip)
        self._client = str(lab.topology.client.addresses[0])

    def run(self) -> Findings:
        engine = self._start_daemons()
        with ExitStack() as patient:
            for host in (self._lab.client, *self._lab.nodes):  # what is counted shall be losses
                patient.enter_context(host.patient_tcp())
            before = self._lab.counters()
            spreading = self._spread_urls()
            download = self._download()
            gbit, direct_gbit = self._compare_throughput(download.node)
            self._post()
            self._count_losses(before)
        self.problems += Outage(self._lab, spreading.first, self._fetch).run()
        return Findings(engine, spreading, download, gbit, direct_gbit, self.problems)

    def _start_daemons(self) -> str:
        """The engine that they have chosen."""
        with step("Starting a packetbridge on each node, then the balancer"):
            bridges = [self._lab.start_packetbridge(node.name) for node in self._lab.topology.nodes]
            balancer = self._lab.start_balancer(health="/")
        show_command(self._lab.nodes[0], bridges[0])
        show_command(self._lab.balancer, balancer)
        engines = {engine_of(daemon.read_log()) for daemon in (balancer, *bridges)}
        show(f"Data plane: {' and '.join(sorted(engines))}.")
        if len(engines) > 1:
            self.problems.append("the daemons have not all chosen the same engine")
        return "+".join(sorted(engines))

    def _spread_urls(self) -> Spreading:
        paths = [f"/video/{number:03}.mp4" for number in range(1, URLS + 1)]
        with step(f"Fetching {URLS} URLs twice, each over a fresh connection"):
            first, second = self._fetch(paths), self._fetch(paths)
        nodes = [node.name for node in self._lab.topology.nodes]
        spreading = Spreading(
            {fetched.url: fetched.node for fetched in first},
            {fetched.url: fetched.node for fetched in second},
            nodes,
        )
        for node, count in spreading.counts.items():
            show_bar(node, count, max(spreading.counts.values()), f"{count} URLs, {count / URLS:.0%}")
        show(f"The same node both times: {spreading.same} of {URLS} URLs.")
        if spreading.affinity < 1:
            self.problems.append(f"{URLS - spreading.same} URLs went to another node the second time")
        if spreading.least_share < LEAST_SHARE:
            self.problems.append(f"a node has only {spreading.least_share:.2f} of the URLs")
        self._look_into_logs([*first, *second])
        return spreading

    def _look_into_logs(self, fetched: Sequence[Fetched]) -> None:
        """Does NGINX know who asked? Its headers and its logs must say the same."""
        expected = Counter((one.node, self._client) for one in fetched)
        logged = self._logged_requests(len(fetched))
        whose = "the client itself" if logged == expected else "NOT what the client did"
        clients = sorted({client for _, client in logged})
        show(f"NGINX has logged {logged.total()} requests from {', '.join(clients)}: {whose}.")
        if logged != expected:
            self.problems.append(f"NGINX has logged {dict(logged)} instead of {dict(expected)}")
        if {one.client for one in fetched} != {self._client}:
            self.problems.append(f"X-Client is not always {self._client}")

    def _download(self) -> Download:
        target = self._lab.client.directory / "downloaded"
        url = f"http://{self._vip}/{LARGE_FILE}"
        with step(f"Downloading a file of {LARGE_FILE_MIB} MiB"):
            before = self._lab.balancer.interface_bytes()
            node = self._curl("-o", str(target), "-w", "%header{x-node}", url)
            after = self._lab.balancer.interface_bytes()
            crossed = after.received - before.received + after.sent - before.sent
            download = Download(node, md5_of(target), crossed, target.stat().st_size)
            target.unlink()
        right = download.md5 == self._lab.content.md5(LARGE_FILE)
        show(f"From {node}, MD5 {download.md5}: {'as it has to be' if right else 'WRONG'}.")
        show_bar("to the client", 1, 1, f"{download.size / 1e6:.3f} MB")
        share = download.balancer_bytes_ratio
        what = "acknowledgments only" if share <= MOST_BALANCER_BYTES else "FAR TOO MUCH"
        show_bar("via balancer", share, 1, f"{crossed / 1e6:.3f} MB: {what}")
        if not right:
            self.problems.append("the downloaded file has a wrong MD5")
        if share > MOST_BALANCER_BYTES:
            self.problems.append(f"{share:.4f} bytes crossed the balancer per byte delivered")
        return download

    def _compare_throughput(self, node: str) -> tuple[float, float]:
        """Gbit/s through the balancer and directly, the best of several each. Directly is from NGINX's second
        address: all replies from the first one pass the packetbridge.
        """
        backend = self._lab.topology.node(node).second_backend
        rates: dict[str, list[float]] = {self._vip: [], str(backend): []}
        with step(f"Downloading it to /dev/null, through the balancer and directly from {node}"):
            for _ in range(TIMED_DOWNLOADS):
                for host, measured in rates.items():
                    measured.append(self._gbit_of_download(host))
                    sign_of_life()
        balanced, direct = (max(measured) for measured in rates.values())
        fastest = max(balanced, direct)
        show_bar("l3dsr", balanced, fastest, f"{balanced:.1f} Gbit/s")
        show_bar("direct", direct, fastest, f"{direct:.1f} Gbit/s")
        return balanced, direct

    def _post(self) -> None:
        sent = self._lab.content.path(POSTED_FILE)
        target = self._lab.client.directory / "echoed"
        with step(f"POSTing {sent.stat().st_size} bytes, to be echoed"):
            body = ("--data-binary", f"@{sent}", "-H", "Content-Type: application/octet-stream")
            answer = ("-o", str(target), "-w", "%header{x-node}")
            node = self._curl(*body, *answer, f"http://{self._vip}/echo")
        right = target.read_bytes() == sent.read_bytes()
        show(f"Echoed by {node}, {'byte for byte' if right else 'but not the same bytes'}.")
        if not right:
            self.problems.append("the echo of the POST is not what was sent")

    def _count_losses(self, before: Mapping[str, Mapping[str, int]]) -> None:
        with step("Counting losses in all namespaces"):
            changes = self._lab.counters_since(before).values()
        resent = sum(change.get("TcpRetransSegs", 0) for change in changes)
        broken = sum(change.get("TcpInCsumErrors", 0) for change in changes)
        show(f"TcpRetransSegs {resent}, TcpInCsumErrors {broken}.")

    def _fetch(self, paths: Sequence[str]) -> list[Fetched]:
        fetched = []
        for start in range(0, len(paths), BATCH):
            urls = [f"http://{self._vip}{path}" for path in paths[start : start + BATCH]]
            wanted = "".join(f'url = "{url}"\noutput = "/dev/null"\n' for url in urls)
            told = "%{url} %header{x-node} %header{x-client} %{num_connects}\\n"
            headers = ("-H", "Connection: close", "-H", f"X-Request-Id: {REQUEST_ID}")
            lines = self._curl(*headers, "-w", told, "--config", "-", input=wanted).splitlines()
            fetched += [parse_fetched(line) for line in lines]
            sign_of_life()
        return fetched

    def _logged_requests(self, wanted: int) -> Counter[tuple[str, str]]:
        """Of this demo's URLs: how many by node and client address."""
        deadline = time.monotonic() + LOG_SECONDS
        while True:
            logged = Counter(
                (name, line.split()[0])
                for name, nginx in self._lab.nginx.items()
                for line in nginx.access_log.read_text().splitlines()
                if line.endswith(f'"{REQUEST_ID}"')
            )
            if logged.total() >= wanted or time.monotonic() > deadline:
                return logged
            time.sleep(0.02)

    def _gbit_of_download(self, host: str) -> float:
        shown = self._curl("-o", "/dev/null", "-w", "%{speed_download}", f"http://{host}/{LARGE_FILE}")
        return float(shown) * 8 / 1e9

    def _curl(self, *arguments: str, input: str = "") -> str:  # noqa: A002 - the name Host.run has
        command = ["curl", "-sS", "--fail", "--max-time", str(PROGRAM_SECONDS), *arguments]
        return self._lab.client.run(command, timeout=PROGRAM_SECONDS + 1, input=input).stdout


def parse_fetched(line: str) -> Fetched:
    """Raises LabError where the request had no answer of a node, or no connection of its own."""
    fields = line.split(" ")
    if len(fields) != 4 or "" in fields or fields[3] != "1":
        raise LabError(f"not a request over a fresh connection, answered by a node: {line!r}")
    return Fetched(*fields[:3])


def engine_of(log: str) -> str:
    """As a daemon says that it is ready."""
    said = re.search(r" ready: .*, engine (\w+)$", log, re.MULTILINE)
    return said[1] if said else UNKNOWN


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.demo", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, default=AUTO, help="of both daemons")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(f"\nA balancer that chooses by URL, and that no answer crosses.\n\n{PICTURE}")
    lab = Lab(engine=options.engine)
    try:
        with step("Building client, router, balancer and nodes with NGINX, each in a namespace"):
            lab.up()
        findings = Demo(lab).run()
    except (LabError, OSError) as error:
        print(f"\n{error}")
        line = failure(str(error))
    except KeyboardInterrupt:
        line = failure("interrupted")
    else:
        line = findings.line
    lab.down()
    print(f"\n{line}")
    return 0 if line.startswith("demo: ok") else 1


if __name__ == "__main__":
    sys.exit(main())
