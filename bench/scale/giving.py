"""Segments for a program, of flows picked at random by the kernel (random_flow.bpf.c)."""

from enum import IntEnum
from ipaddress import IPv4Address
from pathlib import Path

from bench.contestants import PORT
from bench.errors import BenchError
from bench.scale import population
from bench.scale.knowing import LOOPBACK
from common.bpf import libbpf
from common.bpf.objects import BpfObject
from common.bpf.run import SkBuff, run_packet
from common.wire import dscp, segment, tcp, tcp_options
from common.wire.segment import Segment
from lab import Topology

LINK = bytes(12) + b"\x08\x00"
WINDOW = 500
ANSWERED = 10_000
"""Bytes that the other side has sent already."""
TIMESTAMPS = bytes(8)


class _Taker(IntEnum):
    """Index into map `takers`."""

    NOTHING = 0
    PROGRAM = 1


class Giver:
    """Of segments that arrive where the programs of ``daemon`` expect them, and of up to ``room`` flows."""

    def __init__(self, path: Path, topology: Topology, daemon: str, room: int) -> None:
        service, node = topology.service, topology.nodes[0]
        client = population.FIRST_ADDRESS
        if daemon == "balancer":
            from_client = _segment(client, service.vip, 0)
        else:
            from_client = _segment(client, node.bridge, dscp.with_index(0, service.dscp))
        self._loaded = BpfObject(
            path,
            constants={
                "of_client": from_client,
                "of_backend": _segment(node.backend, client, 0),
                "first_address": int(client),
                "first_port": population.FIRST_PORT,
                "port_bits": population.PORT_BITS,
            },
            max_entries={"memory": room},
        )
        self._size = len(from_client)
        self._put(_Taker.NOTHING, self._loaded.program("nothing"))

    def nanoseconds(self, origin: str, program: int, flows: int, packets: int, verdict: int) -> float:
        """That ``program`` takes for one of many ``packets`` of so many ``flows``, on average.

        ``origin`` is from_client or from_backend. `BenchError` where the last verdict is another one.
        """
        self._put(_Taker.PROGRAM, program)
        took, returned = self._run(origin, _Taker.PROGRAM, flows, packets)
        if returned != verdict:
            raise BenchError(f"a packet {origin.replace('_', ' ')} had the verdict {returned}, not {verdict}")
        picked, _ = self._run(origin, _Taker.NOTHING, flows, packets)
        return took - picked

    @property
    def one_read(self) -> int:
        """A program to compare with: it reads from as much memory as so many flows take, at one place."""
        return self._loaded.program("one_read")

    def close(self) -> None:
        self._loaded.close()

    def _run(self, origin: str, taker: _Taker, flows: int, packets: int) -> tuple[int, int]:
        context = SkBuff(mark=flows, priority=taker, ifindex=LOOPBACK)
        packet = LINK + bytes(self._size)
        run = run_packet(self._loaded.program(origin), packet, context, repeat=packets)
        return run.nanoseconds, run.verdict

    def _put(self, taker: _Taker, program: int) -> None:
        index, value = taker.to_bytes(4, "little"), program.to_bytes(4, "little")
        libbpf.check(libbpf.library().bpf_map_update_elem(self._loaded.map("takers"), index, value, 0))


def _segment(source: IPv4Address, destination: IPv4Address, tos: int) -> bytes:
    """An acknowledgment with timestamps. Both ports are the service's: the client's is left to chance."""
    return segment.emit(
        Segment(
            source=source.packed,
            destination=destination.packed,
            source_port=PORT,
            destination_port=PORT,
            seq=population.CLIENT_ISN + 1,
            ack=population.VIP_ISN + ANSWERED,
            flags=tcp.ACK,
            window=WINDOW,
            options=tcp_options.USUAL_TIMESTAMPS + TIMESTAMPS,
            tos=tos,
        )
    ).data
