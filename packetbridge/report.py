"""The packetbridge's report on itself (`common.reports.PacketbridgeReport`), and what it tells balancers."""

import time
from collections.abc import Callable

from common.engine import Counts
from common.log import lost_lines
from common.net import host
from common.release import RELEASE
from common.reports import PacketbridgeReport, VipReport
from common.sparingly import Sparingly
from common.wire.channel import NodeFacts, ServedVip
from packetbridge.config import PacketbridgeConfig
from packetbridge.engine import PacketbridgeEngine

BYTES_TO_CLIENTS = "bytes_to_clients"


class Reporter:
    def __init__(
        self, plane: PacketbridgeEngine, config: PacketbridgeConfig, counters: Callable[[], Counts]
    ) -> None:
        """``counters`` are those of the daemon beside the data plane's."""
        self.config = config
        """In force; whoever takes another one says so here."""
        self.generation = 1
        self._plane = plane
        self._counters = counters
        self._sizes = Sparingly(plane.engine.sizes)
        self._began = time.monotonic()

    def report(self) -> PacketbridgeReport:
        flows = self._plane.flows_of_vips()
        return PacketbridgeReport(
            version=RELEASE,
            engine=self._plane.engine.name,
            uptime=self._uptime(),
            generation=self.generation,
            bridge=str(self.config.bridge),
            vips=[
                VipReport(str(vip.vip), vip.index, str(vip.backend), flows.get(vip.index, 0))
                for vip in self.config.vips
            ],
            counters={**self._plane.engine.counters(), **self._counters(), "log_lines_lost": lost_lines()},
            sizes=dict(self._sizes()),
            warnings=[*self.config.warnings, *host.obstacles()],
        )

    def facts(self) -> NodeFacts:
        """For the channel."""
        flows = self._plane.flows_of_vips()
        return NodeFacts(
            release=RELEASE,
            engine=self._plane.engine.name,
            uptime=self._uptime(),
            bytes_to_clients=self._plane.engine.counters().get(BYTES_TO_CLIENTS, 0),
            vips=tuple(
                ServedVip(vip.index, vip.vip.address.packed, vip.vip.port, flows.get(vip.index, 0))
                for vip in sorted(self.config.vips, key=lambda vip: vip.index)
            ),
        )

    def _uptime(self) -> float:
        return time.monotonic() - self._began
