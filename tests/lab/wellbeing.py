"""That all daemons of a lab are in order, whatever was done to them."""

from lab import Lab
from tests.lab.conversation import Client, converse, request
from tests.lab.observed import counters_of, daemon_of

REQUESTS = 20


def assert_all_is_well(lab: Lab) -> None:
    for host in (lab.balancer, *lab.nodes):
        counters = counters_of(daemon_of(host))
        assert "bugs" not in counters
        assert "event_out_of_place" not in counters
    answers = converse(lab.client, [Client((request(f"/well/{number}"),)) for number in range(REQUESTS)])
    assert [answer.error for answer in answers] == [""] * REQUESTS
    assert {answer.node for answer in answers} == {"node1", "node2", "node3"}
