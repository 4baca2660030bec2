"""Writes docs/live-page.png, the live page with an example report: ``python -m docs.live_page``.

Needs Chromium. The example's clock runs with the page's questions, so that a browser on virtual time sees
two minutes of it in a moment.
"""

import logging
import math
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from common.config import Endpoint
from common.http import HttpServer
from common.reports import BalancerReport, NodeReport, Report, ServiceReport
from common.web import pages
from tests.unit.serving import serving

PICTURE = Path(__file__).parent / "live-page.png"
_SIZE = "1280,1250"
_SECONDS = 125
_LOOPBACK = IPv4Address("127.0.0.1")
_BROWSER = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)


class BrowserError(Exception):
    """Chromium is missing, or did not do what it was asked for."""


def browse(url: str, seconds: int, *more: str) -> str:
    """What headless Chromium prints after that many seconds of virtual time on a page."""
    if shutil.which(_BROWSER[0]) is None:
        raise BrowserError("there is no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="l3dsr-browser-") as profile:
        command = [
            *_BROWSER,
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={seconds * 1000}",
            *more,
            url,
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if ended.returncode:
        raise BrowserError(f"chromium ended with {ended.returncode}: {ended.stderr[-500:]}")
    return ended.stdout


@contextmanager
def shown(make_report: Callable[[], Awaitable[Report]]) -> Iterator[str]:
    """Serves the pages of a daemon that reports so; the URL of the live page."""
    live = pages(make_report, fresh_seconds=0)
    with (
        closing(HttpServer(Endpoint(_LOOPBACK, 0))) as server,
        serving(lambda: server.serve(live, logging.getLogger(__name__))),
    ):
        yield f"http://{server.address}/"


class Example:
    """A balancer with two services: of one's nodes one drains, and one fails after a while.

    Each report is a second after the one before.
    """

    def __init__(self) -> None:
        self._seconds = 0
        self._handed: defaultdict[int, float] = defaultdict(lambda: 41_000)
        self._delivered: defaultdict[int, float] = defaultdict(lambda: 81e9)
        self._passed = 1.6e9

    async def report(self) -> Report:
        self._seconds += 1
        films = ServiceReport("films", "192.168.33.10:80", 1, "segments:2", 1.25, self._films())
        pictures = ServiceReport("pictures", "192.168.33.11:80", 2, "path", None, self._pictures())
        return BalancerReport(
            version="0.1.0",
            engine="ebpf",
            uptime=93_784.0 + self._seconds,
            generation=3,
            services=[films, pictures],
            counters={
                "bytes_to_nodes": int(self._passed),
                "answered_503": 14,
                "answered_414": 3,
                "dropped_fragment": 27,
                "dropped_bad_checksum": 5 + self._seconds // 30,
                "resets_sent": 181 + self._seconds // 4,
            },
            sizes={"half_open": 12, "verified": 31, "collecting": 2, "flows": 48_213, "map_bytes": 2**28},
            warnings=["node4 is down: packetbridge silent"] if self._has_failed else [],
        )

    @property
    def _has_failed(self) -> bool:
        return self._seconds > _SECONDS - 40

    def _films(self) -> list[NodeReport]:
        if self._has_failed:
            return [
                self._node(1, "up", 0.5, 57.0),
                self._node(2, "up", 0.5, 57.0),
                self._node(3, "drain", 0.0, 0.0),
                self._node(4, "down", 0.0, 0.0),
            ]
        return [
            self._node(1, "up", 0.334, 38.0),
            self._node(2, "up", 0.333, 38.0),
            self._node(3, "drain", 0.0, 0.0),
            self._node(4, "up", 0.333, 38.0),
        ]

    def _pictures(self) -> list[NodeReport]:
        return [
            self._node(5, "up", 0.25, 110.0),
            self._node(6, "up", 0.25, 110.0),
            self._node(7, "up", 0.5, 220.0),
        ]

    def _node(self, number: int, state: str, share: float, usual_rate: float) -> NodeReport:
        slow, fast = math.sin(self._seconds / 19 + number), math.sin(self._seconds / 2.3 + 2 * number)
        rate = usual_rate * (1 + 0.25 * slow + 0.08 * fast)
        left = 700 * 0.97**self._seconds if state == "drain" else 0.0
        speed = rate * 1.9e6 + left * 60_000
        self._handed[number] += rate
        self._delivered[number] += speed
        self._passed += speed * 0.0028 + rate * 900
        is_down = state == "down"
        weight = 200 if number == 7 else 100
        return NodeReport(
            name=f"node{number}",
            address=f"192.168.33.{19 + number}",
            state=state,
            reason="packetbridge silent: 3 checks without an answer" if is_down else "",
            weight=weight,
            effective_weight=float(weight) if share else 0.0,
            share=share,
            flows=None if is_down else int(rate * 61 + left),
            bytes_to_clients=int(self._delivered[number]),
            handoffs=int(self._handed[number]),
            handoffs_per_second=rate,
            channel="no word for 38 s" if is_down else "ok",
            version="0.1.0",
            checked=0.3 * number,
        )


def main(arguments: Sequence[str]) -> int:
    target = Path(arguments[0]) if arguments else PICTURE
    try:
        with shown(Example().report) as url:
            browse(url, _SECONDS, f"--window-size={_SIZE}", f"--screenshot={target}")
    except BrowserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
