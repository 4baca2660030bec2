"""The raw data plane of the balancer: taps, rules that keep the kernel from answering, a TUN to send by."""

import os
from contextlib import ExitStack, closing

from balancer.core.engine import BalancerCore
from balancer.core.service import Limits, Service
from balancer.ebpf import plane
from common import keyring
from common.config import RAW
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Engine, Site
from common.net.ownership import OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.tun import Tun


def start(service: Service, limits: Limits, site: Site, owned: ExitStack) -> Engine:
    mac = keyring.make_mac(os.urandom(keyring.KEY_SIZE))
    core = BalancerCore(service, mac, site.keys.sign, wall_clock, limits)
    tun = owned.enter_context(closing(Tun()))
    owned.enter_context(closing(OwnedTable(site.intake.name, drop_rules(site.intake, site.tapped))))
    plane.remove_left(service, site)
    taps = [owned.enter_context(closing(Tap(interface, site.intake))) for interface in site.tapped]
    # Nothing is routed to this TUN; it is read to notice when somebody deletes it.
    from_tun = Feed(tun, lambda *_: None, lambda *_: [])
    from_taps = [Feed(tap, core.plan, core.receive) for tap in taps]
    loop = PacketLoop(tun, [from_tun, *from_taps], core, site.logger)
    return Engine(
        name=RAW,
        loop=loop,
        counters=lambda: {**core.counters, **loop_counters(loop, tun, taps)},
        sizes=lambda: core.sizes,
    )
