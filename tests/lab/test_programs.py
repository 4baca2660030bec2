"""What the eBPF programs do by themselves, and what they leave to Python."""

import pytest

from lab import Host, Lab
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import md5_of_download
from tests.lab.observed import counters_of, daemon_of, tun_of
from tests.lab.sockets import ask, connection

pytestmark = [
    pytest.mark.root,
    pytest.mark.engine("ebpf", reason="on the raw data plane every packet goes through Python"),
]

PASSED_UP = ("passed_up", "no_route", "early", "strangers_passed_up")


def python_saw(lab: Lab) -> dict[str, object]:
    """Of each daemon: what its programs have passed up, and the packets through its TUN, there and back."""
    return {host.name: (passed_up(host), tun_packets(host)) for host in (lab.balancer, *lab.nodes)}


def passed_up(host: Host) -> dict[str, int]:
    counters = counters_of(daemon_of(host))
    return {name: counters[name] for name in PASSED_UP if name in counters}


def tun_packets(host: Host) -> str:
    statistics = f"/sys/class/net/{tun_of(host)}/statistics"
    return host.run(["cat", f"{statistics}/rx_packets", f"{statistics}/tx_packets"]).stdout


def test_downloads_do_not_pass_through_python(running_lab: Lab) -> None:
    before = python_saw(running_lab)
    for name in ("100m", "1m", "64k"):
        assert md5_of_download(running_lab.client, f"{VIP}/{name}") == running_lab.content.md5(name)
    assert python_saw(running_lab) == before


def test_requests_on_a_kept_connection_do_not_pass_through_python(running_lab: Lab) -> None:
    before = python_saw(running_lab)
    with connection(running_lab) as client:
        for number in range(50):
            assert ask(client, f"/kept/{number}").status == 200
    assert python_saw(running_lab) == before


def test_new_connections_do_not_pass_through_python(running_lab: Lab) -> None:
    before = python_saw(running_lab)
    answers = converse(running_lab.client, [Client((request(f"/new/{number}"),)) for number in range(100)])
    assert {answer.status for answer in answers} == {200}
    assert {answer.node for answer in answers} == {"node1", "node2", "node3"}
    assert python_saw(running_lab) == before


def test_a_first_payload_that_does_not_tell_the_url_is_left_to_python(running_lab: Lab) -> None:
    """That connection, and no other one."""
    balancer = daemon_of(running_lab.balancer)
    said = request("/in/two/parts")
    before = counters_of(balancer).get("passed_up", 0)
    (answer,) = converse(running_lab.client, [Client((said[:9], said[9:]))])
    assert answer.body.decode() == f"{answer.node} /in/two/parts\n"
    assert counters_of(balancer)["passed_up"] > before
    seen = python_saw(running_lab)
    (answer,) = converse(running_lab.client, [Client((said,))])
    assert answer.body.decode() == f"{answer.node} /in/two/parts\n"
    assert python_saw(running_lab) == seen
