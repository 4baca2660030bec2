"""How much of a large download crosses the balancer: it should be the client's acknowledgments only."""

from bench.contestants import Contestant
from bench.effort import Effort
from bench.measurement import Measure, Observation, Quantity, Threshold
from bench.workloads import LARGE_FILE_BYTES, fetch_large_file
from lab import Lab

SUPERPACKETS_LIMIT = 0.005
MTU_SIZED_LIMIT = 0.03


def bytes_through_balancer(
    lab: Lab, contestant: Contestant, effort: Effort, *, mtu_sized: bool
) -> Observation:
    """In and out on the balancer's link, per byte of the file, for each of several downloads. `mtu_sized`
    says which kind of lab this is.
    """
    limit, packets = (
        (MTU_SIZED_LIMIT, "MTU-sized packets") if mtu_sized else (SUPERPACKETS_LIMIT, "superpackets")
    )
    values = []
    for _ in range(effort.downloads):
        before = lab.balancer.interface_bytes()
        fetch_large_file(lab, contestant)
        after = lab.balancer.interface_bytes()
        crossed = after.received - before.received + after.sent - before.sent
        values.append(crossed / LARGE_FILE_BYTES)
    threshold = Threshold(Measure.VALUE, limit, at_most=True)
    return Observation(Quantity(f"bytes through the balancer per byte, {packets}", "", 5, threshold), values)
