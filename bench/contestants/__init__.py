"""Who is measured, as data. All of them but `direct` and `ecmp` serve the same VIP, one after the other: none
stands while another one is measured.
"""

from collections.abc import Sequence
from functools import partial

from bench.contestants import daemons, nftables, proxies, routes
from bench.contestants.contestant import PORT, Contestant
from lab import Lab

__all__ = ["AGAIN", "CONTESTANTS", "DIRECT", "DIRECTS", "ECMP", "PORT", "Contestant", "chosen"]

DIRECT = "direct"
ECMP = "ecmp"
AGAIN = "direct again"
DIRECTS = (DIRECT, AGAIN)


def _vip(lab: Lab) -> str:
    return str(lab.topology.service.vip)


CONTESTANTS = (
    Contestant(DIRECT, "the client asks one node", routes.direct_address, routes.direct),
    Contestant(
        ECMP, "no balancer; the router spreads flows over three nodes", routes.ecmp_address, routes.ecmp
    ),
    Contestant(
        "nftables L3DSR", "direct server return, node by a hash of addresses and ports", _vip, nftables.l3dsr
    ),
    Contestant("HAProxy", "`balance uri`", _vip, proxies.haproxy),
    Contestant("HAProxy splice", "`balance uri`, `option splice-response`", _vip, proxies.haproxy_splice),
    Contestant("NGINX", "`hash $request_uri consistent`", _vip, proxies.nginx),
    *(
        Contestant(
            daemons.name(engine),
            f"this project, `--engine {engine}`",
            _vip,
            partial(daemons.running, engine=engine),
        )
        for engine in daemons.ENGINES
    ),
    Contestant(
        AGAIN, "`direct` once more: its distance from 1 is noise", routes.direct_address, routes.direct
    ),
)
"""In the order of their turns."""


def chosen(names: Sequence[str] | None, engines: Sequence[str] | None) -> list[Contestant]:
    """In the order of their turns: `direct`, and those in `names` with this project's own of `engines`.
    Without names, all others; without engines, this project's like all others.
    """
    own = {daemons.name(engine): engine for engine in daemons.ENGINES}

    def is_chosen(name: str) -> bool:
        if name in {DIRECT, AGAIN} or name in (names or ()):
            return True
        if name in own and engines is not None:
            return own[name] in engines
        return names is None

    return [each for each in CONTESTANTS if is_chosen(each.name)]
