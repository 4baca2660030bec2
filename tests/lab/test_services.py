"""Three services on one balancer, two of them at one VIP, with pools, hash keys and ports of their own."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest

from common.control_client import ask_once
from lab import Lab
from lab.nginx import OTHER_PORT
from tests.lab.configured import answers, bridge, nodes_of, pool, service, vip
from tests.lab.conftest import check_for_bugs
from tests.lab.fetch import curl, md5_of_download
from tests.lab.sockets import ask, connection

pytestmark = pytest.mark.root

MAIN = "192.168.33.10"
SECOND = "192.168.33.11"
WWW, ALTERNATIVE, SECOND_WWW = ENDPOINTS = ((MAIN, 80), (MAIN, 8080), (SECOND, 80))
Endpoint = tuple[str, int]
KEYS = range(120)
each_service = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=["www", "alternative", "second"])


@pytest.fixture(scope="module")
def lab(engine: str) -> Iterator[Lab]:
    """The daemons know from their files what they serve. No service has a backend of another's port."""
    with Lab(engine=engine) as fresh:
        for node in fresh.topology.nodes:
            text = bridge(
                fresh,
                node.name,
                vip(f"{MAIN}:80", 1, f"{node.backend}:80"),
                vip(f"{MAIN}:8080", 33, f"{node.second_backend}:80"),
                vip(f"{SECOND}:80", 63, f"{node.backend}:{OTHER_PORT}"),
            )
            fresh.start_configured(fresh.hosts[node.name], "packetbridge", text)
        text = (
            pool(fresh, {"node1": 1, "node2": 1, "node3": 1}, name="all")
            + pool(fresh, {"node1": 3, "node2": 1}, name="unequal")
            + service(f"{MAIN}:80", 1, name="www", pool="all")
            + service(f"{MAIN}:8080", 33, name="alternative", pool="unequal", hash_key="uri")
            + service(f"{SECOND}:80", 63, name="second", pool="all", hash_key="segments:1", hash_seed=7)
        )
        fresh.start_configured(fresh.balancer, "balancer", text)
        yield fresh
        check_for_bugs(fresh)


def url(endpoint: Endpoint, target: str) -> str:
    address, port = endpoint
    return f"http://{address}:{port}{target}"


@each_service
def test_each_service_is_served_by_backends_of_its_own(lab: Lab, endpoint: Endpoint) -> None:
    found = answers(lab, [url(endpoint, f"/own{number}") for number in KEYS])
    assert {answer.status for answer in found} == {200}
    nodes = [lab.topology.node(answer.node) for answer in found]
    own = [node.second_backend if endpoint == ALTERNATIVE else node.backend for node in nodes]
    assert [IPv4Address(answer.backend) for answer in found] == own


@each_service
def test_bytes_are_the_same_whatever_ports_service_and_backend_have(lab: Lab, endpoint: Endpoint) -> None:
    content = lab.content
    assert md5_of_download(lab.client, url(endpoint, "/1m")) == content.md5("1m")
    upload = ["--data-binary", f"@{content.path('1m')}"]
    assert md5_of_download(lab.client, url(endpoint, "/echo"), *upload) == content.md5("1m")


def test_the_port_of_the_backend_is_the_configured_one(lab: Lab) -> None:
    with connection(lab, address=SECOND) as client:
        node = ask(client, "/port").node
        shown = lab.hosts[node].run(["ss", "-Htn", "dport", "=", f":{client.getsockname()[1]}"]).stdout
        assert shown.split()[3] == f"{lab.topology.node(node).backend}:{OTHER_PORT}"


def test_one_port_of_a_client_has_a_connection_to_each_service_at_once(lab: Lab) -> None:
    with ExitStack() as all_open:
        clients = [
            all_open.enter_context(connection(lab, port=31000, address=address, vip_port=port))
            for address, port in ENDPOINTS
        ]
        first = [ask(client, f"/at-once/{number}") for number, client in enumerate(clients)]
        again = [ask(client, "/1m") for client in clients]
    assert [answer.status for answer in first] == [200] * 3
    assert [answer.body for answer in again] == [lab.content.path("1m").read_bytes()] * 3
    assert [(answer.node, answer.backend) for answer in again] == [
        (answer.node, answer.backend) for answer in first
    ]


def test_weights_are_those_of_the_service_s_pool(lab: Lab) -> None:
    shares = Counter(nodes_of(lab, [url(ALTERNATIVE, f"/weight{number}") for number in KEYS]))
    assert shares.keys() == {"node1", "node2"}
    assert 2.0 < shares["node1"] / shares["node2"] < 4.5
    assert nodes_of(lab, [url(WWW, f"/weight{number}") for number in KEYS]).count("node3") > 20


def test_the_hash_key_is_that_of_the_service(lab: Lab) -> None:
    queries = [f"/same?{number}" for number in KEYS]
    below_one = [f"/same/{number}" for number in KEYS]

    def spread(endpoint: Endpoint, targets: list[str]) -> int:
        return len(set(nodes_of(lab, [url(endpoint, target) for target in targets])))

    assert [spread(WWW, queries), spread(WWW, below_one)] == [1, 3]
    assert [spread(ALTERNATIVE, queries), spread(ALTERNATIVE, below_one)] == [2, 2]
    assert [spread(SECOND_WWW, queries), spread(SECOND_WWW, below_one)] == [1, 1]
    assert spread(SECOND_WWW, [f"/{number}/same" for number in KEYS]) == 3


def test_a_port_that_is_no_service_is_answered_by_the_host_itself(lab: Lab) -> None:
    refused = lab.client.run(["curl", "-sS", "--max-time", "30", f"http://{SECOND}:8080/"], check=False)
    assert refused.returncode == 7
    assert curl(lab.client, url(SECOND_WWW, "/beside")).endswith(" /beside\n")


def test_the_status_names_services_and_what_they_share(lab: Lab) -> None:
    report = ask_once(lab.balancer.state_directory / "balancer.sock", "status")
    said = {each["name"]: (each["vip"], each["vip_index"], each["hash_key"]) for each in report["services"]}
    assert said == {
        "www": (f"{MAIN}:80", 1, "path"),
        "alternative": (f"{MAIN}:8080", 33, "uri"),
        "second": (f"{SECOND}:80", 63, "segments:1"),
    }
    shown = lab.tool(lab.balancer, "status").stdout
    assert all(name in shown for name in said)
