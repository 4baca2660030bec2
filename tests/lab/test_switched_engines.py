"""A packetbridge on one data plane that takes the place of one on the other: its flows are carried over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lab import Lab, Process
from tests.lab.observed import counters_of, daemon_of, node_of
from tests.lab.sockets import ask, await_that, connection
from tests.lab.test_restart import SLOW, assert_complete_or_reset, begin_download, is_acknowledged
from tests.lab.wellbeing import assert_all_is_well

pytestmark = pytest.mark.root

OTHER = {"raw": "ebpf", "ebpf": "raw"}
ENDS: dict[str, Callable[[Process], int]] = {"killed": Process.kill, "stopped": Process.stop}
however = pytest.mark.parametrize("how", ENDS)
in_each_way = pytest.mark.parametrize("adopt", ["auto", "off"])
"""How the eBPF plane opens connections."""


@contextmanager
def switching(lab: Lab, node: str, adopt: str, how: str) -> Iterator[Callable[[str], None]]:
    """A function that ends the packetbridge and starts one on an engine. Afterwards the lab's own is back."""
    host = lab.hosts[node]
    daemon_of(host).stop()
    lab.start_packetbridge(node, f"--adopt={adopt}")

    def switch(engine: str) -> None:
        ENDS[how](daemon_of(host))
        lab.start_packetbridge(node, f"--adopt={adopt}", f"--engine={engine}")

    try:
        yield switch
    finally:
        daemon_of(host).stop()
        lab.start_packetbridge(node)


@however
@in_each_way
def test_an_idle_connection_goes_on(running_lab: Lab, engine: str, adopt: str, how: str) -> None:
    content = running_lab.content.path("1m").read_bytes()
    node = node_of(running_lab, "/1m")
    host = running_lab.hosts[node]
    with switching(running_lab, node, adopt, how) as switch, connection(running_lab) as client:
        port = client.getsockname()[1]
        assert ask(client, "/1m").body == content
        for successor in (OTHER[engine], engine):
            await_that(lambda: is_acknowledged(host, port))
            switch(successor)
            assert counters_of(daemon_of(host))["restored"] >= 1
            assert ask(client, "/1m").body == content
    assert_all_is_well(running_lab)


@however
@in_each_way
def test_a_slow_download_is_complete_or_reset(running_lab: Lab, engine: str, adopt: str, how: str) -> None:
    content = running_lab.content.path("1m").read_bytes()
    node = node_of(running_lab, SLOW)
    with switching(running_lab, node, adopt, how) as switch, connection(running_lab) as client:
        received = begin_download(client, SLOW)
        switch(OTHER[engine])
        switch(engine)
        assert_complete_or_reset(client, received, content)
    assert_all_is_well(running_lab)
