"""What the programs pass up: segments of flows that are not there yet, or not any more."""

from collections.abc import Mapping

from common.counters import Counters
from common.deadlines import earliest
from common.wire import dscp, segment
from common.wire.errors import WireError
from common.wire.offload import Packet
from packetbridge.core.service import Limits, Service
from packetbridge.core.strangers import Strangers
from packetbridge.ebpf.flows import MapFlows, key_of_backend, key_of_client
from packetbridge.ebpf.waiting_room import Openness, WaitingRoom


class PassedUp:
    def __init__(self, services: Mapping[int, Service], flows: MapFlows, limits: Limits) -> None:
        """``services`` by their VIP's index."""
        self.counters: Counters[str] = Counters()
        self._services = services
        self._flows = flows
        self._waiting = WaitingRoom(flows.openness, limits)
        self.strangers = Strangers(
            limits.strangers,
            limits.resets_per_second,
            self.counters,
            lambda service, key: flows.openness(key_of_backend(service, key)) is not Openness.UNKNOWN,
        )

    def receive(self, packet: Packet, now: float) -> list[Packet]:
        """A tagged packet, which comes back at once if its flow has been spliced meanwhile, behind those that
        wait.
        """
        try:
            came = segment.parse_untrusted(segment.without_padding(packet))
        except WireError as error:
            self.counters[error.reason] += 1
            return []
        service = self._services.get(dscp.index_of(came.tos))
        if service is None:
            self.counters["unknown_dscp"] += 1
            return []
        key = key_of_client(came)
        match self._flows.openness(key):
            case Openness.SPLICED:
                return [*self._waiting.release(key), packet]
            case Openness.OPENING:
                if not self._waiting.hold(key, packet, now):
                    self.counters["waiting_full"] += 1
                return []
            case Openness.UNKNOWN:
                stranger = service.backend_key(came.source, came.source_port)
                return self.strangers.meet(stranger, service, came, now)

    def on_timeout(self, now: float) -> list[Packet]:
        return self._waiting.due(now) + self.strangers.due(now)

    def next_deadline(self) -> float | None:
        return earliest(self._waiting.next_deadline(), self.strangers.next_deadline())

    @property
    def sizes(self) -> dict[str, int]:
        return {"strangers": len(self.strangers), "waiting_bytes": self._waiting.bytes}
