"""What a packetbridge does, as vectors."""

from tests.conformance.packetbridge import admission, ends, opening, packets, reused_ports, spliced

VECTORS = [
    *opening.VECTORS,
    *spliced.VECTORS,
    *reused_ports.VECTORS,
    *ends.VECTORS,
    *admission.VECTORS,
    *packets.VECTORS,
]
