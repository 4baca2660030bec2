"""What a balancer does, as vectors."""

from tests.conformance.balancer import answers, established, handshake, packets, preamble, reused_ports

VECTORS = [
    *handshake.VECTORS,
    *preamble.VECTORS,
    *answers.VECTORS,
    *established.VECTORS,
    *reused_ports.VECTORS,
    *packets.VECTORS,
]
