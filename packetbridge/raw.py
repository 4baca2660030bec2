"""The raw data plane of the packetbridge: taps, rules and routes that bring replies to the TUN, a journal."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from common.config import RAW
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Engine, Site
from common.net.ownership import Backend, OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.routes import ReplyRoutes
from common.net.sock_diag import SocketQuery
from common.net.tun import Tun
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.service import Limits, Service
from packetbridge.ebpf import plane
from packetbridge.journal import Journal, path_of
from packetbridge.kept_core import KeptCore


def start(
    services: Sequence[Service], backends: Sequence[Backend], limits: Limits, site: Site, owned: ExitStack
) -> Engine:
    core = PacketbridgeCore(services, site.keys.verify, wall_clock, limits)
    tun = owned.enter_context(closing(Tun()))
    owned.enter_context(closing(OwnedTable(site.intake.name, drop_rules(site.intake, site.tapped))))
    path = path_of(site.state_dir, site.intake.address)
    journal = owned.enter_context(closing(Journal(path, site.logger)))
    plane.remove_left(site, journal)
    taps = [owned.enter_context(closing(Tap(interface, site.intake))) for interface in site.tapped]
    owned.enter_context(closing(ReplyRoutes(backends, tun.index)))
    query = owned.enter_context(closing(SocketQuery()))

    kept = KeptCore(core, journal, query)
    from_tun = Feed(tun, core.plan_from_backend, kept.from_backend)
    from_taps = [Feed(tap, core.plan_from_balancer, kept.from_balancer) for tap in taps]
    loop = PacketLoop(tun, [from_tun, *from_taps], kept, site.logger)
    loop.send(kept.restore(time.monotonic(), site.logger))
    return Engine(
        name=RAW,
        loop=loop,
        counters=lambda: {
            **core.counters,
            **loop_counters(loop, tun, taps),
            "journal_failures": journal.failures,
        },
        sizes=lambda: core.sizes,
    )
