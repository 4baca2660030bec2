"""Requests of every shape through the VIP, byte for byte."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from lab import Lab
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import curl, md5_of_download, md5_of_echo
from tests.lab.instead import balancer_with
from tests.lab.lossless import repairs
from tests.lab.observed import counters_of, daemon_of, handoffs_in, logged, node_of, payload_length, segments

pytestmark = pytest.mark.root

FRESH_POSTS = 400
FRESH_POSTS_AT_ONCE = 50
CLIENT_MSS = 1424


def echoed(lab: Lab, name: str, *arguments: str) -> str:
    """The MD5 of what comes back when the lab's file is posted."""
    return md5_of_echo(lab.client, lab.content.path(name), *arguments)


# --- methods and bodies ---


def test_a_download_of_100_mib_is_complete_and_does_not_cross_the_balancer(running_lab: Lab) -> None:
    before = running_lab.balancer.interface_bytes()
    assert md5_of_download(running_lab.client, f"{VIP}/100m") == running_lab.content.md5("100m")
    after = running_lab.balancer.interface_bytes()
    assert 0 < after.sent - before.sent < 100 * 2**20 // 50


def test_an_upload_of_100_mib_comes_back_complete(running_lab: Lab) -> None:
    assert echoed(running_lab, "100m") == running_lab.content.md5("100m")


def test_head_gives_the_length_and_no_body(running_lab: Lab) -> None:
    (answer,) = converse(running_lab.client, [Client((request("/1m", method="HEAD"),))])
    assert answer.status == 200
    assert b"\r\nContent-Length: 1048576\r\n" in answer.data
    assert answer.body == b""
    assert answer.error == ""


def test_the_server_says_100_continue_before_the_body_is_sent(running_lab: Lab) -> None:
    sent = running_lab.content.path("64k")
    waiting = ["--expect100-timeout", "15", "-H", "Expect: 100-continue"]
    shown = curl(
        running_lab.client, "-v", "-i", *waiting, "--data-binary", f"@{sent}", "--stderr", "-", f"{VIP}/echo"
    )
    heads = re.findall(r"^< HTTP/1\.1 (\d+)", shown, re.MULTILINE)
    assert heads == ["100", "200"]
    assert "Done waiting for 100-continue" not in shown
    assert echoed(running_lab, "64k", *waiting) == running_lab.content.md5("64k")


def test_a_chunked_upload_comes_back_complete(running_lab: Lab) -> None:
    assert echoed(running_lab, "1m", "-H", "Transfer-Encoding: chunked") == running_lab.content.md5("1m")


def test_pipelined_requests_are_answered_in_their_order(running_lab: Lab) -> None:
    first = "".join(f"GET /p{number} HTTP/1.1\r\nHost: lab\r\n\r\n" for number in range(40)).encode()
    (answer,) = converse(running_lab.client, [Client((first + request("/last"),))])
    assert answer.error == ""
    wanted = [f"{answer.node} /p{number}" for number in range(40)] + [f"{answer.node} /last"]
    assert re.findall(r"^node\d /.*$", answer.data.decode(), re.MULTILINE) == wanted


def test_a_connection_that_is_kept_alive_stays_on_its_node(running_lab: Lab) -> None:
    urls = [f"{VIP}/kept/{number}" for number in range(30)]
    shown = curl(running_lab.client, "-w", "%{num_connects} %{local_port}\n", *urls)
    answers, connections = shown.splitlines()[::2], shown.splitlines()[1::2]
    node = node_of(running_lab, "/kept/0")
    assert answers == [f"{node} /kept/{number}" for number in range(30)]
    assert [line.split()[0] for line in connections] == ["1"] + ["0"] * 29
    assert len({line.split()[1] for line in connections}) == 1


def test_ranges_are_the_bytes_that_were_asked_for(running_lab: Lab) -> None:
    content = running_lab.content.path("1m").read_bytes()
    ranges = {"0-99": content[:100], "500000-700000": content[500000:700001], "-3000": content[-3000:]}
    for wanted, expected in ranges.items():
        target = running_lab.client.directory / "range"
        status = curl(running_lab.client, "-r", wanted, "-o", str(target), "-w", "%{http_code}", f"{VIP}/1m")
        assert status == "206"
        assert target.read_bytes() == expected


def test_an_interrupted_download_is_resumed_over_another_connection(running_lab: Lab) -> None:
    content = running_lab.content.path("1m").read_bytes()
    target = running_lab.client.directory / "resumed"
    target.write_bytes(content[:333333])
    curl(running_lab.client, "-C", "-", "-o", str(target), f"{VIP}/1m")
    assert target.read_bytes() == content


def test_many_downloads_at_once_do_not_mix(running_lab: Lab) -> None:
    targets = [running_lab.client.directory / f"parallel{number}" for number in range(24)]
    names = ["1m", "64k", "4k"] * 8
    arguments = [
        word
        for number, (target, name) in enumerate(zip(targets, names, strict=True))
        for word in ("-o", str(target), f"{VIP}/{name}?{number}")
    ]
    curl(running_lab.client, "--parallel", "--parallel-immediate", "--parallel-max", "24", *arguments)
    found = [hashlib.md5(target.read_bytes()).hexdigest() for target in targets]
    assert found == [running_lab.content.md5(name) for name in names]


# --- large first payloads ---


def test_a_url_of_8_kib_is_answered(running_lab: Lab) -> None:
    target = "/" + "u" * 8191
    (answer,) = converse(running_lab.client, [Client((request(target),))])
    assert answer.body.decode() == f"{answer.node} {target}\n"
    assert answer.node == node_of(running_lab, target)


def test_headers_of_30_kib_arrive(running_lab: Lab) -> None:
    large = [f"X-Large-{number}: {'h' * 1000}" for number in range(30)]
    request_id = "headers-of-30-kib"
    (answer,) = converse(
        running_lab.client, [Client((request("/4k", *large, f"X-Request-Id: {request_id}"),))]
    )
    assert answer.body == running_lab.content.path("4k").read_bytes()
    assert answer.node == node_of(running_lab, "/4k")
    assert len(logged(running_lab, answer.node, request_id, at_least=1)) == 1


# --- who is served by whom ---


def nodes_of(lab: Lab, targets: list[str]) -> list[str]:
    """Asked over fresh connections."""
    return [
        answer.node for answer in converse(lab.client, [Client((request(target),)) for target in targets])
    ]


def test_each_url_goes_to_the_same_node_every_time_and_all_nodes_get_some(running_lab: Lab) -> None:
    targets = [f"/object/{number}" for number in range(150)]
    first = nodes_of(running_lab, targets)
    assert nodes_of(running_lab, targets) == first
    shares = Counter(first)
    assert set(shares) == {"node1", "node2", "node3"}
    assert min(shares.values()) >= 0.2 * len(targets)


def test_by_default_query_host_and_spelling_of_the_path_do_not_matter(running_lab: Lab) -> None:
    spellings = ["/a/b", "/a/b?x=1", "/a/b?x=2", "/a//b", "/a/./b", "/a/%62", "http://other/a/b"]
    assert len(set(nodes_of(running_lab, spellings))) == 1


def test_with_the_key_uri_the_query_counts(running_lab: Lab) -> None:
    with balancer_with(running_lab, "--hash-key=uri"):
        targets = [f"/a/b?x={number}" for number in range(60)]
        nodes = nodes_of(running_lab, targets)
        assert set(nodes) == {"node1", "node2", "node3"}
        assert nodes_of(running_lab, targets) == nodes


def test_with_a_seed_of_the_hash_urls_go_elsewhere_and_still_each_to_one_node(running_lab: Lab) -> None:
    targets = [f"/seeded/{number}" for number in range(60)]
    without = nodes_of(running_lab, targets)
    with balancer_with(running_lab, "--hash-seed=1"):
        nodes = nodes_of(running_lab, targets)
        assert nodes_of(running_lab, targets) == nodes
    assert set(nodes) == {"node1", "node2", "node3"}
    assert nodes != without


def test_with_the_key_segments_all_below_goes_to_one_node(running_lab: Lab) -> None:
    with balancer_with(running_lab, "--hash-key=segments:2"):
        streams = {
            stream: nodes_of(
                running_lab, [f"/live/{stream}/{number}.ts?token={number}" for number in range(8)]
            )
            for stream in range(30)
        }
    assert all(len(set(nodes)) == 1 for nodes in streams.values())
    assert {nodes[0] for nodes in streams.values()} == {"node1", "node2", "node3"}


# --- what server and client see of each other ---


@pytest.mark.parametrize("address", ["198.51.100.10", "198.51.100.11", "198.51.100.12"])
def test_the_server_sees_and_logs_the_clients_address_and_port(running_lab: Lab, address: str) -> None:
    request_id = f"from-{address}"
    shown = curl(
        running_lab.client,
        *["--interface", address, "-H", f"X-Request-Id: {request_id}", "-i"],
        *["-w", "%{local_port}", f"{VIP}/who"],
    )
    assert f"X-Client: {address}\r\n" in shown
    port = shown.rpartition("\n")[2]
    node = node_of(running_lab, "/who")
    (line,) = logged(running_lab, node, request_id, at_least=1)
    assert line.startswith(f"{address} {port} {running_lab.topology.node(node).backend} 200 ")


def sources_at_client(path: Path) -> set[tuple[str, int]]:
    return {(segment.src, segment["TCP"].sport) for segment in segments(path)}


def test_no_address_but_the_vips_ever_reaches_the_client_as_source(running_lab: Lab) -> None:
    with running_lab.client.capture(
        filter_expression="tcp and not src net 198.51.100.0/24", snap_bytes=96
    ) as path:
        nodes_of(running_lab, [f"/sources/{number}" for number in range(30)])
        md5_of_download(running_lab.client, f"{VIP}/1m")
        echoed(running_lab, "64k")
        curl(running_lab.client, "-r", "0-9", "--interface", "198.51.100.11", f"{VIP}/4k", "-o", "/dev/null")
    assert sources_at_client(path) == {("192.168.33.10", 80)}


# --- a path that loses nothing ---


def test_fresh_posts_of_4_kib_cause_no_retransmission_and_no_wrong_checksum(running_lab: Lab) -> None:
    body = running_lab.content.path("4k").read_bytes()

    def post() -> None:
        for start in range(0, FRESH_POSTS, FRESH_POSTS_AT_ONCE):
            targets = [f"/echo?{start + number}" for number in range(FRESH_POSTS_AT_ONCE)]
            posts = [Client((request(target, method="POST", body=body),)) for target in targets]
            answers = converse(running_lab.client, posts)
            assert [answer.body == body for answer in answers] == [True] * FRESH_POSTS_AT_ONCE

    assert repairs(running_lab, post) == {}


def test_downloads_cause_no_retransmission_and_no_wrong_checksum(running_lab: Lab) -> None:
    def download() -> None:
        for name in ("100m", "1m", "64k", "4k"):
            assert md5_of_download(running_lab.client, f"{VIP}/{name}") == running_lab.content.md5(name)

    assert repairs(running_lab, download) == {}


@pytest.mark.parametrize("size", [1, 1300, 1424, 4096, 40000, 60000])
def test_a_superpacket_may_be_the_first_payload(running_lab: Lab, size: int) -> None:
    body = running_lab.content.path("64k").read_bytes()[:size]
    said = request("/echo", method="POST", body=body)

    def post() -> None:
        (answer,) = converse(running_lab.client, [Client((said,))])
        assert answer.body == body

    with running_lab.client.capture(filter_expression="tcp dst port 80", snap_bytes=96) as path:
        assert repairs(running_lab, post) == {}
    first = next(length for segment in segments(path) if (length := payload_length(segment)))
    assert first == len(said) if len(said) <= CLIENT_MSS else first > CLIENT_MSS


def test_nothing_was_dropped_and_every_key_was_read(running_lab: Lab) -> None:
    balancer = daemon_of(running_lab.balancer)
    before = counters_of(balancer)
    nodes_of(running_lab, [f"/counted/{number}" for number in range(30)])
    after = counters_of(balancer)
    changes = {name: after[name] - before.get(name, 0) for name in after}
    assert handoffs_in(changes) == 30
    assert [name for name in after if name.startswith(("key_unread", "dropped", "tap_", "tun_"))] == []
