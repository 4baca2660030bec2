"""What may be asked at a control socket: the commands' names and arguments.

docs/control.md says what each does and answers. Both daemons know those of `COMMON`, the balancer those of
`BALANCER` besides. Nodes and services go by their names in the configuration.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from common.config import MAX_WEIGHT

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
_Url = Annotated[str, msgspec.Meta(max_length=32 * 1024)]
"""More than any that is served (`common.hashing.request_key`), so that this is what is said of it."""
_Weight = Annotated[int, msgspec.Meta(ge=0, le=MAX_WEIGHT)]


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one command. As such: of a command that takes none."""


class Flows(Arguments, frozen=True, kw_only=True):
    client: _Text | None = None
    """Address; None: of all clients."""
    node: _Text | None = None
    """Name, or bridge address; None: at all nodes."""
    limit: Annotated[int, msgspec.Meta(ge=1)] = 1000
    """How many flows are told of at most."""


class Flow(Arguments, frozen=True, kw_only=True):
    client: _Text
    port: _Port
    """The client's."""
    vip: _Text | None = None
    """ADDR:PORT; None: of each VIP that has such a flow."""


class Explain(Arguments, frozen=True, kw_only=True):
    url: _Url
    service: _Text | None = None
    """None: the service that the URL's host and port name, or the only one there is."""


class OfNode(Arguments, frozen=True, kw_only=True):
    node: _Text


class Weight(Arguments, frozen=True, kw_only=True):
    node: _Text
    weight: _Weight | None
    """None: the configured one again."""


COMMON: Mapping[str, type[Arguments]] = {
    "status": Arguments,
    "counters": Arguments,
    "flows": Flows,
    "flow": Flow,
    "reload": Arguments,
}
BALANCER: Mapping[str, type[Arguments]] = {
    "explain": Explain,
    "drain": OfNode,
    "undrain": OfNode,
    "disable": OfNode,
    "enable": OfNode,
    "weight": Weight,
    "channels": Arguments,
    "checks": Arguments,
}
CHANGES = frozenset({"reload", "drain", "undrain", "disable", "enable", "weight"})
"""What changes something, so that the log tells who has asked for it."""
