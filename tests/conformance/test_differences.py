"""Where the planes are not alike is written down, and shown."""

from tests.conformance import balancer, packetbridge
from tests.conformance.differences import Difference, OutOfReach, markdown

WITHOUT_A_VECTOR = {Difference.WHOLE_SECONDS, Difference.PYTHONS_SHARE}
"""They depend on the moment, and on the load."""


def test_every_difference_is_shown_by_a_vector() -> None:
    vectors = [*balancer.VECTORS, *packetbridge.VECTORS]
    shown = {step.difference for vector in vectors for step in vector.steps} - {None}
    assert shown == set(Difference) - WITHOUT_A_VECTOR


def test_behaviours_have_names_of_their_own() -> None:
    for vectors in (balancer.VECTORS, packetbridge.VECTORS):
        names = [vector.name for vector in vectors]
        assert sorted(set(names)) == sorted(names)


def test_document_has_every_difference_on_a_line() -> None:
    text = markdown()
    assert text.count("\n| ") == len(Difference) + len(OutOfReach) + 1
    assert all(f"| {each.what} | {each.why} |" in text for each in (*Difference, *OutOfReach))
