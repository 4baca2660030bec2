"""The live page of a made-up daemon, and Chromium on virtual time in front of it."""

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address

from common.config import Endpoint
from common.http import HttpServer
from common.reports import Report
from common.web import pages
from tests.unit.serving import serving

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
    # Processes of the browser may still write there when its first one has ended.
    with tempfile.TemporaryDirectory(prefix="l3dsr-browser-", ignore_cleanup_errors=True) as profile:
        command = [
            *_BROWSER,
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={seconds * 1000}",
            *more,
            url,
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
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
