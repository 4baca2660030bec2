"""What of a path MTU is left for a first payload: an IP header of 20 bytes and a handoff's of 56 go off."""

import pytest

from balancer.core.path_mtu import MIN_PAYLOAD, NEEDED_MTU, payload_within


@pytest.mark.parametrize(
    ("mtu", "payload"), [(1500, 1424), (9000, 1424), (1499, 1420), (1400, 1324), (1001, 924), (612, 536)]
)
def test_payload_is_what_fits_in_steps_of_four_and_at_most_what_a_handoff_takes(
    mtu: int, payload: int
) -> None:
    assert payload_within(mtu) == payload


def test_the_least_payload_needs_612_bytes() -> None:
    assert (MIN_PAYLOAD, NEEDED_MTU) == (536, 612)
