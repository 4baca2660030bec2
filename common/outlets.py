"""Where a daemon can be asked: its control socket and, if configured, its HTTP address."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, closing

from common import web
from common.config import HostConfig
from common.control import Command, ControlSocket
from common.http import HttpServer
from common.reports import Report


class Outlets:
    """They listen from the start, and answer as long as `tasks` run."""

    def __init__(self, host: HostConfig, owned: ExitStack) -> None:
        """`HostError` where somebody else has one of them."""
        self._control = owned.enter_context(closing(ControlSocket(host.control, host.control_group)))
        self._http = None if host.metrics is None else owned.enter_context(closing(HttpServer(host.metrics)))

    def tasks(
        self, commands: Mapping[str, Command], report: Callable[[], Report], logger: logging.Logger
    ) -> list[Callable[[], Awaitable[None]]]:
        async def make_report() -> Report:
            return report()

        async def answer_tool() -> None:
            await self._control.serve(commands, logger)

        async def answer_browser() -> None:
            if self._http is not None:
                await self._http.serve(web.pages(make_report), logger)

        return [answer_tool, answer_browser]
