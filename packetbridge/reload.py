"""Which services may take the place of those that a packetbridge has, while it runs.

Of an index that goes on, VIP and backend stay as long as it has flows: their packets would change their
addresses in the middle of a connection. A VIP that is gone takes its flows with it, and nobody is told.
The backend's host ends them, as its replies reach clients in its own name and are answered with a RST.
"""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address

from common.config import ConfigError
from common.net.ownership import Backend
from packetbridge.core import service
from packetbridge.core.service import Service


def refuse_changes(old: Iterable[Service], new: Sequence[Service], open_flows: Callable[[int], int]) -> None:
    """`ConfigError` where ``new`` cannot follow ``old``; ``open_flows`` are those of a VIP index."""
    require_consistent(new)
    before = {served.vip_index: served for served in old}
    for served in new:
        was = before.get(served.vip_index)
        if was is None or was == served:
            continue
        if was.bridge != served.bridge:
            raise ConfigError("the bridge address cannot be changed while the packetbridge runs: restart it")
        flows = open_flows(served.vip_index)
        if flows:
            raise ConfigError(
                f"DSCP {served.vip_index} has {flows} flow{'s' if flows > 1 else ''} of VIP"
                f" {_endpoint(was.vip, was.vip_port)} to {_endpoint(was.backend, was.backend_port)}:"
                " drain it first, or use another DSCP"
            )


def require_consistent(services: Sequence[Service]) -> None:
    """`ConfigError` where no packetbridge could serve these."""
    try:
        service.check(services)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if len({served.bridge for served in services}) != 1:
        raise ConfigError("a packetbridge serves at least one VIP, and all at one bridge address")


def backends_of(services: Iterable[Service]) -> list[Backend]:
    return [(IPv4Address(served.backend), served.backend_port) for served in services]


def _endpoint(address: bytes, port: int) -> str:
    return f"{IPv4Address(address)}:{port}"
