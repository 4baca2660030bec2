"""Health checks through a real packetbridge core to a model server, in bad weather, too."""

import pytest

from balancer.core.hearsay import Failure, Hearsay
from balancer.core.probe import CheckResult
from common.wire.offload import Packet
from tests.sim.checking import OWN, PORT, CheckedNetwork
from tests.sim.link import Weather, every
from tests.sim.network import VIPS, backend_of, is_handoff
from tests.unit.wire.packets import tcp_checksum, with_field, with_ip_checksum

LINGER = 70.0


def failed(network: CheckedNetwork, failure: Failure) -> CheckResult:
    result = network.probe.result
    assert result is not None
    assert (result.ok, result.failure) == (False, failure)
    return result


def passed(network: CheckedNetwork) -> CheckResult:
    result = network.probe.result
    assert result is not None
    assert (result.ok, result.failure) == (True, None)
    return result


def test_check_of_a_healthy_node_passes_with_one_handoff_and_leaves_nothing() -> None:
    network = CheckedNetwork(path="/object/20000")
    network.conclude()
    passed(network)
    assert [(served.path, served.client) for served in network.served] == [("/object/20000", (OWN, PORT))]
    network.run(LINGER)
    assert len(network.handoffs()) == 1
    assert network.retransmissions() == 0
    assert network.left_at_the_server() == 0
    assert len(network.node.packetbridge.core._flows) == 0
    assert [violation for violation in network.violations() if "node" in violation] == []


@pytest.mark.parametrize("seed", range(40))
def test_loss_duplication_and_reordering_delay_a_check_and_leave_nothing(seed: int) -> None:
    network = CheckedNetwork(seed, timeout=20.0)
    network.keep_no_order()
    weather = Weather(loss=0.15, duplication=0.1, reordering=0.2)
    for line in (network.balancer_to_node, network.node_to_client):
        line.have(weather)
    network.conclude()
    passed(network)
    assert len(network.served) == 1
    network.run(180)
    assert network.left_at_the_server() == 0


def test_answer_longer_than_is_read_ends_with_a_reset_after_the_verdict() -> None:
    network = CheckedNetwork(path="/object/500000")
    network.conclude()
    passed(network)
    sent = sum(len(packet.data) - 40 for _, packet in network.node_to_client.carried)
    assert 65_536 < sent < 90_000
    network.run(LINGER)
    assert network.left_at_the_server() == 0


def test_closed_backend_port_is_a_refusal() -> None:
    network = CheckedNetwork()
    del network.node.host.listeners[backend_of(network.node)]
    network.conclude()
    result = failed(network, Failure.BACKEND_REFUSED)
    assert result.seconds < 0.1


def test_backend_that_takes_the_request_and_says_nothing_is_silent() -> None:
    network = CheckedNetwork(answer_delay=5.0)
    network.conclude()
    result = failed(network, Failure.BACKEND_SILENT)
    assert result.seconds == pytest.approx(1.0)
    network.run(LINGER)
    assert network.left_at_the_server() == 0


def test_status_that_is_not_expected_fails_the_check_and_is_named() -> None:
    network = CheckedNetwork()
    network.answer_with(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    network.conclude()
    result = failed(network, Failure.WRONG_STATUS)
    assert result.text == "the backend answers with status 503, not 200-399"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP: b'SSH-2.0-OpenSSH_9.2\\r\\n'"),
        (b"", "the backend took the request and closed the connection"),
        (b"HTTP/1.1 2", "the backend sent 10 bytes without a status line and closed the connection"),
        (
            b"HTTP/1.1 100 Continue\r\nX: " + b"y" * 6000,
            "the answer is not HTTP: b'HTTP/1.1 100 Continue\\r\\nX'",
        ),
    ],
)
def test_what_is_no_http_answer_is_a_bad_one(answer: bytes, text: str) -> None:
    network = CheckedNetwork()
    network.answer_with(answer)
    network.conclude()
    result = failed(network, Failure.BAD_ANSWER)
    assert result.text.startswith(text[:50])


def test_interim_responses_are_passed_over() -> None:
    network = CheckedNetwork()
    network.answer_with(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    network.conclude()
    assert passed(network).text == "status 204"


@pytest.mark.parametrize("skew", [-61, 61])
def test_clock_that_is_off_silences_the_packetbridge(skew: int) -> None:
    network = CheckedNetwork(skew=skew)
    network.conclude()
    assert network.probe.is_silent
    assert network.probe.result is None
    assert len(network.handoffs()) == 4
    assert network.served == []


def test_answer_that_comes_from_another_address_is_named() -> None:
    network = CheckedNetwork()
    backend = network.node.backends[0]

    def from_backend(packet: Packet) -> Packet:
        moved = with_ip_checksum(packet.data[:12] + backend + packet.data[16:])
        return Packet(with_field(moved, 36, tcp_checksum(moved)))

    network.node_to_client.alter = from_backend
    network.conclude()
    result = failed(network, Failure.NOT_FROM_VIP)
    assert result.text == "the answer came from 192.168.33.30:80, not from 192.168.33.10:80"
    network.run(LINGER)
    assert network.left_at_the_server() == 0


def test_silence_after_an_answer_that_was_lost_is_explained_by_what_the_node_knows() -> None:
    network = CheckedNetwork()
    network.node_to_client.add(every(lambda _: True, ()))
    network.conclude()
    assert network.probe.is_silent
    assert len(network.served) == 1
    network._send(network.probe.explain(Hearsay(), network.timeline.now))
    failed(network, Failure.BRIDGE_SILENT)
    network.run(LINGER)
    assert network.left_at_the_server() == 0


def test_lost_first_segment_is_a_lost_part_of_the_answer() -> None:
    network = CheckedNetwork()
    network.node_to_client.add(every(lambda packet: b"HTTP/1.1" in packet.data, ()))
    network.conclude()
    failed(network, Failure.ANSWER_LOST)


def test_damage_on_the_way_back_is_told_from_silence() -> None:
    network = CheckedNetwork()
    network.node_to_client.alter = lambda packet: Packet(packet.data[:-1] + bytes([packet.data[-1] ^ 1]))
    network.conclude()
    result = failed(network, Failure.ANSWER_LOST)
    assert "wrong checksums" in result.text


def test_lost_handoffs_are_repeated_within_the_timeout() -> None:
    network = CheckedNetwork()
    lost = iter([True, True, True, False])
    network.balancer_to_node.add(lambda packet: () if is_handoff(packet) and next(lost) else None)
    network.conclude()
    result = passed(network)
    assert result.seconds == pytest.approx(0.75, abs=0.05)


def test_answer_that_comes_after_the_timeout_does_not_pass() -> None:
    network = CheckedNetwork(timeout=0.02)
    network.node_to_client.add(every(lambda packet: packet.data[12:16] == VIPS[0], (0.1,)))
    network.conclude()
    assert network.probe.is_silent
    network.run(1.0)
    failed(network, Failure.BACKEND_SILENT)


def test_abandoned_check_leaves_nothing() -> None:
    network = CheckedNetwork(answer_delay=5.0)
    network.begin()
    network.run(0.5)
    assert network.left_at_the_server() == 1
    network._send(network.probe.abandon())
    network.run(LINGER)
    assert network.left_at_the_server() == 0
    assert network.probe.result is None
