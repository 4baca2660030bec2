"""Which changes of the services cannot be made while they are served."""

from collections.abc import Iterable
from ipaddress import IPv4Address

from balancer.core.service import Service
from common.config import ConfigError


def refuse_changes(old: Iterable[Service], new: Iterable[Service]) -> None:
    """`ConfigError` where a VIP and port keep their place but not what established flows were promised."""
    known = {service.endpoint: service for service in old}
    for service in new:
        before = known.get(service.endpoint)
        if before is None:
            continue
        subject = f"service {IPv4Address(service.vip)}:{service.port}"
        _refuse(subject, "DSCP", before.vip_index, service.vip_index)
        _refuse(subject, "promised window scale", before.promised_scale, service.promised_scale)


def _refuse(subject: str, what: str, before: int, after: int) -> None:
    if before != after:
        raise ConfigError(
            f"{subject} has {what} {before} and cannot get {after} while it is served: "
            "restart the balancer, or add it as another service"
        )
