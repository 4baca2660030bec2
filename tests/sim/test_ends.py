"""How connections end: in order, by resets, by forgeries, and in silence."""

import pytest

from common.wire.offload import Packet
from tests.sim import expect
from tests.sim.endpoint import Profile, State
from tests.sim.http import Fetch, request
from tests.sim.link import every, nth
from tests.sim.network import PLAIN, VIPS, Network, flags_of, has_payload
from tests.sim.segment import ACK, FIN, RST, Options, Segment, parse


def forged(network: Network, fetch: Fetch, flags: int, seq_ahead: int) -> Segment:
    """As from the client, ``seq_ahead`` of what it sends next."""
    connection = fetch.connection
    number = connection.sender.wire(connection.sender.nxt + seq_ahead)
    ack = connection.receiver.wire(connection.receiver.nxt)
    stamps = (network.client.ticks(), connection.recent_stamp)
    return Segment(connection.local, connection.remote, number, ack, flags, 500, Options(stamps=stamps))


def keep_alive(network: Network, path: str = "/object/3000", profile: Profile = PLAIN) -> Fetch:
    """A connection that has had one answer and is idle."""
    fetch = network.fetch(path, close=False, profile=profile)
    network.timeline.run(20.0, lambda: bool(fetch.responses()))
    network.run(0.5)
    return fetch


def test_a_half_closed_client_still_gets_all() -> None:
    network = Network(answer_delay=3.0)
    fetch = network.fetch("/object/400000", close=False, half_closes=True)
    network.finish(fetch)
    expect.answered(fetch, "/object/400000")
    expect.lossless(network)


def test_a_half_closed_download_that_pauses_is_not_forgotten() -> None:
    """The FIN makes the idle time short, but not as short as that."""
    network = Network(answer_delay=55.0)
    fetch = network.fetch("/object/400000", close=False, half_closes=True)
    network.finish(fetch)
    expect.answered(fetch, "/object/400000")
    expect.clean(network)


@pytest.mark.parametrize("pause", [30.0, 400.0, 7000.0, 9000.0])
def test_an_idle_keep_alive_connection_goes_on_where_it_was(pause: float) -> None:
    network = Network()
    fetch = keep_alive(network)
    network.run(pause)
    if pause > 7500.0:
        fetch.connection.probe()
        network.run(1.0)
    fetch.connection.write(request("GET", "/object/3000", close=True))
    network.finish(fetch)
    if pause <= 7500.0:
        expect.answered(fetch, "/object/3000", 2)
        expect.lossless(network)
    else:
        assert fetch.was_reset


def test_keepalive_probes_keep_a_connection_for_hours() -> None:
    network = Network()
    fetch = keep_alive(network)
    for _ in range(4):
        network.run(3600.0)
        before = len(network.node_to_client.carried)
        fetch.connection.probe()
        network.run(1.0)
        assert len(network.node_to_client.carried) == before + 1
    fetch.connection.write(request("GET", "/object/3000", close=True))
    network.finish(fetch)
    expect.answered(fetch, "/object/3000", 2)
    expect.lossless(network)


def test_the_servers_keepalive_probe_is_answered_by_the_client() -> None:
    network = Network()
    fetch = keep_alive(network)
    server = next(iter(network.node.host.connections.values()))
    before = len(network.to_server.carried)
    server.probe()
    network.run(1.0)
    assert len(network.to_server.carried) == before + 1
    fetch.connection.close()
    network.finish(fetch)
    expect.lossless(network)


def test_a_client_that_resets_ends_the_servers_connection() -> None:
    network = Network()
    fetch = keep_alive(network)
    fetch.connection.abort()
    network.run(1.0)
    assert network.node.host.connections == {}
    assert network.violations() == []
    network.run(60.0)
    assert network.balancer.core.sizes["flows"] == 0
    assert network.node.packetbridge.core.sizes["flows"] == 0


def test_a_server_that_resets_ends_the_clients_connection() -> None:
    network = Network()
    fetch = keep_alive(network)
    next(iter(network.node.host.connections.values())).abort()
    network.run(1.0)
    assert fetch.was_reset
    assert network.violations() == []
    assert network.node.packetbridge.core.sizes["flows"] == 0


@pytest.mark.parametrize("flags", [RST, RST | ACK])
@pytest.mark.parametrize("ahead", [-5000, 1, 4000, 1 << 20])
def test_a_forged_rst_beside_the_expected_number_ends_nothing(flags: int, ahead: int) -> None:
    """The server answers one in its window with a challenge ACK (RFC 5961), which the client ignores."""
    network = Network()
    fetch = keep_alive(network)
    network.inject(forged(network, fetch, flags, ahead))
    network.run(300.0)
    fetch.connection.write(request("GET", "/object/3000", close=True))
    network.finish(fetch)
    expect.answered(fetch, "/object/3000", 2)
    assert network.retransmissions() == 0
    expect.clean(network)


def ask_again(network: Network, fetch: Fetch, count: int) -> None:
    """One more request, which makes it ``count`` answers."""
    fetch.connection.write(request("GET", "/object/3000"))
    network.timeline.run(5.0, lambda: len(fetch.responses()) == count)
    expect.answered(fetch, "/object/3000", count)


@pytest.mark.parametrize("ahead", [1, 4000, 1 << 20])
def test_a_forged_fin_beside_the_expected_number_ends_nothing(ahead: int) -> None:
    network = Network()
    fetch = keep_alive(network)
    network.inject(forged(network, fetch, FIN | ACK, ahead))
    network.run(300.0)
    ask_again(network, fetch, 2)
    assert network.balancer.core.sizes["flows"] == 1


@pytest.mark.parametrize("flags", [FIN | ACK, RST])
def test_a_forged_fin_or_rst_that_only_the_balancer_sees_does_not_cut_a_transfer_off(flags: int) -> None:
    """At the exact number, but lost behind the balancer: it makes idle time shorter until the next packet."""
    network = Network()
    fetch = keep_alive(network)
    network.balancer_to_node.add(nth(1, lambda packet: bool(flags_of(packet) & (FIN | RST)), ()))
    network.inject(forged(network, fetch, flags, 0))
    network.run(8.0)
    ask_again(network, fetch, 2)
    network.run(300.0)
    ask_again(network, fetch, 3)
    assert network.violations() == []


def test_a_syn_in_an_established_connection_is_answered_and_changes_nothing() -> None:
    network = Network()
    fetch = keep_alive(network)
    syn = forged(network, fetch, 2, 77_777)._replace(ack=0, options=Options(1460))
    network.inject(syn)
    network.run(5.0)
    # What answers it is a SYN-ACK of the balancer, which the client's stack challenges.
    fetch.connection.write(request("GET", "/object/3000", close=True))
    network.finish(fetch)
    expect.answered(fetch, "/object/3000", 2)
    assert network.retransmissions() == 0
    assert len(network.served) == 2


def test_a_client_gone_silent_is_forgotten_by_all() -> None:
    network = Network()
    fetch = network.fetch("/object/500000", close=False)
    network.run(0.06)
    fetch.connection.vanish()
    network.client_to_balancer.add(every(lambda _: True, ()))
    network.run(9000.0)
    assert network.node.host.connections == {}
    assert network.balancer.core.sizes["flows"] == 0
    assert network.node.packetbridge.core.sizes["flows"] == 0


def test_a_closed_backend_port_means_a_reset_at_once() -> None:
    network = Network()
    network.node.host.listeners.clear()
    fetch = network.fetch()
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now == pytest.approx(5000.0 + 0.02 + 0.010 + 0.001 + 0.012)
    ((_, packet),) = network.node_to_client.carried
    reset = parse(packet)
    connection = fetch.connection
    assert reset[:5] == (
        (VIPS[0], 80),
        connection.local,
        connection.receiver.wire(1),
        connection.sender.wire(1),
        RST | ACK,
    )
    assert network.violations() == []


def test_a_full_accept_queue_delays_and_loses_nothing() -> None:
    for profile in (Profile(), Profile(timestamps=False), Profile(sack=False, scale=None)):
        network = Network()
        network.node.listeners[0].accept_queue_is_full = True
        network.timeline.after(2.5, network.node.listeners[0].drain)
        fetch = network.fetch("/post", "POST", bytes(4000), profile=profile)
        network.finish(fetch)
        expect.posted(network, fetch, bytes(4000))
        assert network.timeline.now < 5008.0
        expect.clean(network)


def test_two_fins_end_a_flow_on_both_daemons_within_two_minutes() -> None:
    network = Network()
    fetch = network.fetch()
    network.finish(fetch)
    network.run(120.0)
    assert network.balancer.core.sizes["flows"] == 0
    assert network.node.packetbridge.core.sizes["flows"] == 0


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_lost_fin_is_repeated_until_both_are_closed(who: str) -> None:
    for lost in (1, 2):
        network = Network()
        line = network.node_to_client if who == "server" else network.client_to_balancer
        seen = [0]

        def fault(packet: Packet, seen: list[int] = seen, lost: int = lost) -> tuple[float, ...] | None:
            if not flags_of(packet) & FIN:
                return None
            seen[0] += 1
            return () if seen[0] <= lost else None

        line.add(fault)
        fetch = network.fetch("/object/3000")
        network.finish(fetch)
        expect.answered(fetch, "/object/3000")
        expect.clean(network)
        assert fetch.connection.state is State.CLOSED
        assert seen[0] == lost + 1


def test_an_ack_that_its_fin_has_overtaken_does_not_keep_a_flow_for_hours() -> None:
    network = Network()
    network.keep_no_order()
    fetch = network.fetch("/object/30000")
    network.timeline.run(1.0, lambda: fetch.has_ended)
    late = [packet for _, packet in network.client_to_balancer.carried if not has_payload(packet)][-2]
    assert flags_of(late) == ACK
    network.timeline.after(0.005, lambda: network.client_to_balancer.send(late))
    network.run(200.0)
    assert network.balancer.core.sizes["flows"] == 0
