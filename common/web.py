"""What a daemon shows at its HTTP address: the live page, its report as JSON, metrics."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec
import trio

from common import page
from common.http import Page
from common.metrics.errors import errors
from common.reports import Report
from common.threads import in_thread

FRESH_SECONDS = 0.5
"""How old a report may be. Whoever asks, and how often, the daemon makes no more of them."""


def pages(
    make_report: Callable[[], Awaitable[Report]], *, fresh_seconds: float = FRESH_SECONDS
) -> Mapping[str, Page]:
    """By path, for `common.http.HttpServer`."""
    reports = _Reports(make_report, fresh_seconds)
    live = page.html()

    async def html() -> bytes:
        return live

    async def json() -> bytes:
        report = await reports.latest()
        return msgspec.json.encode({**msgspec.to_builtins(report), "errors": errors(report)})

    async def metrics() -> bytes:
        latest = await reports.latest()
        return await in_thread(lambda: _metrics_text(latest))

    return {
        "/": Page(page.CONTENT_TYPE, html, page.security_policy(live)),
        "/report.json": Page("application/json", json),
        "/metrics": Page("text/plain; version=0.0.4; charset=utf-8", metrics),
    }


def _metrics_text(report: Report) -> bytes:
    """In a thread: the first time loads a library, and many nodes make a long text; both take long for a loop
    that moves packets.
    """
    from common.metrics import exposition  # noqa: PLC0415 it takes memory, and many daemons are not scraped

    return exposition.text(report)


class _Reports:
    def __init__(self, make_report: Callable[[], Awaitable[Report]], fresh_seconds: float) -> None:
        self._make_report = make_report
        self._fresh_seconds = fresh_seconds
        self._making = trio.Lock()
        self._latest: Report | None = None
        self._made_at = 0.0

    async def latest(self) -> Report:
        async with self._making:
            if self._latest is None or trio.current_time() - self._made_at >= self._fresh_seconds:
                self._latest = await self._make_report()
                self._made_at = trio.current_time()
            return self._latest
