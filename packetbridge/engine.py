"""What the packetbridge's data planes have beyond those of any daemon."""

from collections.abc import Callable
from typing import NamedTuple

from common.engine import Engine
from packetbridge.core.service import Service


class PacketbridgeEngine(NamedTuple):
    engine: Engine[Service]
    flows_of_vips: Callable[[], dict[int, int]]
    """By VIP index, how many flows there are, without those that are over. Cheap."""
