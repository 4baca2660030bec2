"""The commands against a control socket whose daemon gives literal answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.control_client import ControlError
from common.reports import BalancerReport, Departure, Explanation
from l3dsr import cli, nodes
from tests.unit.l3dsr import reports
from tests.unit.l3dsr.daemon import Answers, answering, refusing

EXPLANATION = Explanation(
    service="www",
    key="/a",
    key_hash="0123456789abcdef",
    slot=7,
    slots=65537,
    node="node1",
    sequence=["node1", "node3"],
    departures=[Departure("node1", "node3", 0.338), Departure("node2", "node1", 0.334)],
)
STATUS = """\
balancer 0.2.0, engine ebpf, up 3 h 12 min, configuration 2

www  VIP 192.168.33.10:80  DSCP 7 (TOS 28, 0x1c)  key path  load factor 1.5
NODE   ADDRESS        STATE  WEIGHT   SHARE  FLOWS  HANDOFFS    /S     SENT    CHECKED  CHANNEL
node1  192.168.33.20  up         10  75.0 %  1,234    98,765  12.3  5.0 GiB  0.7 s ago  ok
node2  192.168.33.21  down       10   0.0 %      -         3   0.0        -          -  silent
  node2 is down: backend refused: nothing listens at 192.168.33.31:80

remembered: flows 1,234
errors:
  12 resets to clients of unknown flows
  3 packets dropped: bad checksum
warning: the clock of node2 is 70 seconds ahead

packetbridge 0.2.0, engine raw, up 42.0 s, configuration 1, bridge address 192.168.33.20

VIP               DSCP                   BACKEND             FLOWS
192.168.33.10:80  DSCP 7 (TOS 28, 0x1c)  192.168.33.30:8080      5

remembered: flows 5
errors:
  4 handoffs refused: bad tag
"""
FLOW = """\
balancer (node1):
  state           established
  tagged          DSCP 7 (TOS 28, 0x1c)
  bridge address  192.168.33.20
  age             1 min 1 s
  idle            0.2 s
packetbridge (node1):
  state           spliced
  tagged          DSCP 7 (TOS 28, 0x1c)
  bridge address  192.168.33.20
  age             1 min 0 s
  idle            0.2 s
  client isn      16909060
  seq delta       1000
  fin             no
  window scale    -
"""
EXPLAINED = """\
service   www
key       /a
hash      0123456789abcdef
slot      7 of 65537
node      node1
sequence  node1, node3
without node1: this URL would go to node3; 33.8 % of all slots would move
without node2: this URL would stay; 33.4 % of all slots would move
"""


class Daemons:
    """Sockets in a directory of their own, and the tool that is to find them there."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys
        self.asked: list[Any] = []

    def balancer(self, answers: Answers) -> Any:
        return answering(self.directory / "balancer.sock", answers)

    def packetbridge(self, answers: Answers) -> Any:
        return answering(self.directory / "packetbridge.sock", answers)

    def noted(self, *values: Any) -> Any:
        def answer(arguments: Any) -> list[Any]:
            self.asked.append(arguments)
            return list(values)

        return answer

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = cli.run([arguments[0], "--state-dir", str(self.directory), *arguments[1:]])
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def daemons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Daemons:
    return Daemons(tmp_path, capsys)


def test_status_shows_both_daemons_of_a_host(daemons: Daemons) -> None:
    with (
        daemons.balancer({"status": lambda _: [reports.BALANCER]}),
        daemons.packetbridge({"status": lambda _: [reports.PACKETBRIDGE]}),
    ):
        assert daemons.run("status") == (0, STATUS, "")


def test_status_as_json_is_the_daemon_s_own_document(daemons: Daemons) -> None:
    with daemons.packetbridge({"status": lambda _: [reports.PACKETBRIDGE]}):
        code, out, _ = daemons.run("status", "--json")
    said = json.loads(out)
    assert (code, said["daemon"], said["vips"][0]["backend"]) == (0, "packetbridge", "192.168.33.30:8080")


def test_no_daemon_is_one_line_and_exit_code_1(daemons: Daemons) -> None:
    code, out, err = daemons.run("status")
    place = daemons.directory
    assert (code, out) == (1, "")
    assert err == (
        f"l3dsr status: no daemon listens on {place}/balancer.sock or {place}/packetbridge.sock:"
        " start one, or name its socket with --socket\n"
    )


def test_status_of_another_version_says_so(daemons: Daemons) -> None:
    with daemons.balancer({"status": lambda _: [{"daemon": "balancer", "version": 3}]}):
        code, _, err = daemons.run("status")
    assert code == 1
    assert "the daemon is of another version than this tool: restart it, or update the tool" in err


def test_watch_without_a_terminal_is_a_wrong_command_line(daemons: Daemons) -> None:
    code, _, err = daemons.run("status", "--watch")
    assert (code, err.partition(":")[0]) == (2, "l3dsr status")


def test_what_a_terminal_would_obey_is_shown_as_text(daemons: Daemons) -> None:
    side = reports.SIDES[0].__class__("balancer", "node\x1b[2J1", None, "gone\nforever")
    with daemons.balancer({"flow": lambda _: [side]}):
        code, out, _ = daemons.run("flow", "203.0.113.7:49152")
    assert (code, out) == (1, "balancer (node\\x1b[2J1):\n  gone\\nforever\n")


def test_flows_are_asked_for_by_client_and_node(daemons: Daemons) -> None:
    with daemons.balancer({"flows": daemons.noted(reports.FLOW)}):
        code, out, _ = daemons.run("flows", "--client", "203.0.113.7", "--node", "node1", "--limit", "5")
    assert code == 0
    assert [(each.client, each.node, each.limit) for each in daemons.asked] == [("203.0.113.7", "node1", 5)]
    assert out == (
        "balancer: 1 flow\n"
        "CLIENT             DSCP  NODE           STATE              AGE   IDLE\n"
        "203.0.113.7:49152  7     192.168.33.20  established  1 min 1 s  0.2 s\n"
    )


def test_a_list_of_flows_that_may_go_on_says_so(daemons: Daemons) -> None:
    with daemons.balancer({"flows": daemons.noted(reports.FLOW, reports.FLOW)}):
        assert daemons.run("flows", "--limit", "3")[1].startswith("balancer: 2 flows\n")
        assert daemons.run("flows", "--limit", "2")[1].startswith(
            "balancer: 2 flows, and there may be more (--limit)\n"
        )


def test_flow_shows_what_both_sides_know(daemons: Daemons) -> None:
    with daemons.balancer({"flow": daemons.noted(*reports.SIDES)}):
        assert daemons.run("flow", "203.0.113.7:49152") == (0, FLOW, "")
    assert [(each.client, each.port, each.vip) for each in daemons.asked] == [("203.0.113.7", 49152, None)]


def test_unknown_flow_is_exit_code_1(daemons: Daemons) -> None:
    with daemons.balancer({"flow": daemons.noted()}):
        assert daemons.run("flow", "203.0.113.7:1") == (1, "no flow of 203.0.113.7:1 is known\n", "")


def test_a_connection_without_a_node_is_shown(daemons: Daemons) -> None:
    flow = msgspec.structs.replace(reports.FLOW, node="", state="verified", age=None, idle=None)
    side = msgspec.structs.replace(reports.SIDES[0], node="", flow=flow, text="it has no node")
    with daemons.balancer({"flow": daemons.noted(side)}):
        code, out, _ = daemons.run("flow", "203.0.113.7:49152")
    assert code == 0
    assert out == (
        "balancer:\n"
        "  state           verified\n"
        "  tagged          DSCP 7 (TOS 28, 0x1c)\n"
        "  bridge address  -\n"
        "  age             -\n"
        "  idle            -\n"
        "  note            it has no node\n"
    )


def test_explain_says_where_a_url_belongs_and_what_would_move_it(daemons: Daemons) -> None:
    with daemons.balancer({"explain": daemons.noted(EXPLANATION)}):
        assert daemons.run("explain", "http://www.example/a") == (0, EXPLAINED, "")


@pytest.mark.parametrize("command", ["drain", "undrain", "disable", "enable"])
def test_states_of_nodes_are_set_by_name(daemons: Daemons, command: str) -> None:
    with daemons.balancer({command: daemons.noted(reports.UP)}):
        code, out, _ = daemons.run(command, "node1")
    assert (code, [each.node for each in daemons.asked]) == (0, ["node1"])
    assert out.startswith("node1 ")


@pytest.mark.parametrize(("said", "weight"), [("5", 5), ("0", 0), ("default", None)])
def test_weight_is_a_number_or_the_configured_one(daemons: Daemons, said: str, weight: int | None) -> None:
    with daemons.balancer({"weight": daemons.noted(reports.UP)}):
        assert daemons.run("weight", "node1", said)[0] == 0
    assert [(each.node, each.weight) for each in daemons.asked] == [("node1", weight)]


def test_a_refusal_is_shown_in_the_daemon_s_words(daemons: Daemons) -> None:
    with daemons.balancer({"drain": refusing("there is no node 'x': node1, node2")}):
        assert daemons.run("drain", "x") == (1, "", "l3dsr drain: there is no node 'x': node1, node2\n")


def test_reload_prints_what_has_changed(daemons: Daemons) -> None:
    with (
        daemons.balancer({"reload": daemons.noted("node3 is new")}),
        daemons.packetbridge({"reload": daemons.noted()}),
    ):
        code, out, _ = daemons.run("reload")
    assert (code, out) == (0, "balancer: reloaded\n  node3 is new\npacketbridge: nothing has changed\n")


def test_a_refused_reload_is_exit_code_1(daemons: Daemons) -> None:
    with daemons.balancer({"reload": refusing("balancer.toml: line 3: no key `foo`")}):
        assert daemons.run("reload")[::2] == (1, "l3dsr reload: balancer.toml: line 3: no key `foo`\n")


def test_a_daemon_that_fails_takes_nothing_from_the_other(daemons: Daemons) -> None:
    sound = {
        "reload": daemons.noted("node3 is new"),
        "status": daemons.noted(reports.BALANCER),
        "flows": daemons.noted(),
    }
    failing: Answers = {
        "reload": refusing("packetbridge.toml: line 3: no key `foo`"),
        "status": lambda _: [{"daemon": "packetbridge", "version": 3}],
        "flows": refusing("no such node"),
    }
    with daemons.balancer(sound), daemons.packetbridge(failing):
        assert daemons.run("reload") == (
            1,
            "balancer: reloaded\n  node3 is new\n",
            "l3dsr reload: packetbridge: packetbridge.toml: line 3: no key `foo`\n",
        )
        code, out, err = daemons.run("status")
        assert (code, out) == (1, STATUS.partition("\npacketbridge")[0])
        assert err.startswith("l3dsr status: packetbridge: the daemon is of another version")
        assert daemons.run("flows") == (1, "balancer: 0 flows\n", "l3dsr flows: packetbridge: no such node\n")


def test_a_complaint_has_nothing_that_a_terminal_obeys(daemons: Daemons) -> None:
    with daemons.balancer({"drain": refusing("there is no node a\x1b[31mb")}):
        assert daemons.run("drain", "x") == (1, "", "l3dsr drain: there is no node a\\x1b[31mb\n")


def run_apart(
    daemons: Daemons, *arguments: str, streams: str = "", encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """The tool as a process of its own; ``streams`` is what a shell is to do with its streams."""
    command = [sys.executable, "-m", "l3dsr", *arguments, "--state-dir", str(daemons.directory)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_output_that_cannot_be_written_is_one_line(daemons: Daemons) -> None:
    with daemons.balancer({"status": daemons.noted(reports.BALANCER)}):
        full = run_apart(daemons, "status", streams="> /dev/full")
    assert full.returncode == 1
    assert full.stderr == "l3dsr status: cannot write standard output: No space left on device\n"


def test_what_is_to_be_done_is_done_with_all_streams_closed(daemons: Daemons) -> None:
    with daemons.balancer({"drain": daemons.noted(reports.UP)}):
        assert run_apart(daemons, "drain", "node1", streams="<&- >&- 2>&-").returncode == 0
    assert [each.node for each in daemons.asked] == ["node1"]


def test_a_character_that_the_terminal_does_not_have_is_escaped(daemons: Daemons) -> None:
    answer = msgspec.structs.replace(EXPLANATION, key="/ä")
    with daemons.balancer({"explain": daemons.noted(answer)}):
        shown = run_apart(daemons, "explain", "/x", encoding="ascii")
    assert (shown.returncode, shown.stdout.splitlines()[1]) == (0, "key       /\\xe4")


def test_a_drain_does_not_take_a_node_that_is_gone_for_an_empty_one(daemons: Daemons) -> None:
    with (
        daemons.balancer({"status": daemons.noted(reports.BALANCER)}),
        pytest.raises(ControlError, match="node3 is not configured any more"),
    ):
        nodes.FlowsLeft(daemons.directory / "balancer.sock", "node3").count()


def test_a_drain_that_somebody_has_ended_is_not_waited_for(daemons: Daemons) -> None:
    with (
        daemons.balancer({"status": daemons.noted(reports.BALANCER)}),
        pytest.raises(ControlError, match="node1 takes new flows again: somebody has ended the drain"),
    ):
        nodes.FlowsLeft(daemons.directory / "balancer.sock", "node1").count()


def draining(flows: int | None) -> BalancerReport:
    """A balancer that has node1 in drain."""
    node = msgspec.structs.replace(reports.UP, state="drain", flows=flows)
    service = msgspec.structs.replace(reports.BALANCER.services[0], nodes=[node, reports.DOWN])
    return msgspec.structs.replace(reports.BALANCER, services=[service])


def test_drain_waits_until_the_node_has_said_for_two_seconds_that_it_is_empty() -> None:
    now = [0.0]
    counts = iter([7, 3, 0, 1, 0, 0, 0, 0, 0, 0])
    shown: list[tuple[int, int]] = []
    left = nodes.wait_until_empty(
        lambda: next(counts),
        lambda left, most: shown.append((left, most)),
        None,
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
        clock=lambda: now[0],
    )
    assert left == 0
    assert shown == [(7, 7), (3, 7), (0, 7), (1, 7), (0, 7), (0, 7), (0, 7), (0, 7), (0, 7)]


def test_drain_gives_up_after_its_time() -> None:
    now = [0.0]
    left = nodes.wait_until_empty(
        lambda: 5,
        lambda *_: None,
        3,
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
        clock=lambda: now[0],
    )
    assert (left, now[0]) == (5, 3.0)


def test_drain_without_waiting_has_no_timeout(daemons: Daemons) -> None:
    code, _, err = daemons.run("drain", "node1", "--timeout", "3")
    assert (code, err) == (2, "l3dsr drain: --timeout goes with --wait (see l3dsr drain --help)\n")


def test_drain_counts_the_balancer_s_flows_where_the_node_says_nothing(daemons: Daemons) -> None:
    answers = {"status": lambda _: [draining(1234)], "flows": daemons.noted(reports.FLOW, reports.FLOW)}
    with daemons.balancer(answers):
        place = daemons.directory / "balancer.sock"
        assert nodes.FlowsLeft(place, "node1").count() == 1234
        assert nodes.FlowsLeft(place, "node2").count() == 2


def test_drain_asks_for_the_balancer_s_flows_the_more_seldom_the_longer_it_takes(daemons: Daemons) -> None:
    now, remembered = [100.0], [reports.FLOW]

    def flows(_arguments: Any) -> list[Any]:
        now[0] += 2.0
        return list(remembered)

    with daemons.balancer({"status": lambda _: [reports.BALANCER], "flows": flows}):
        left = nodes.FlowsLeft(daemons.directory / "balancer.sock", "node2", lambda: now[0])
        assert left.count() == 1
        remembered.clear()
        now[0] = 141.9
        assert left.count() == 1
        now[0] = 142.0
        assert left.count() == 0


@pytest.mark.parametrize(
    ("said", "remembered", "left"), [(0, 1, 0), (1, 0, 0), (1, 1, 1), (1, 2, 1), (2, 0, 2), (2, 1, 2)]
)
def test_drain_does_not_wait_for_health_checks(
    daemons: Daemons, said: int, remembered: int, left: int
) -> None:
    """The node counts at most one of them for each service, the balancer none."""
    answers = {
        "status": lambda _: [draining(said)],
        "flows": daemons.noted(*[reports.FLOW] * remembered),
    }
    with daemons.balancer(answers):
        assert nodes.FlowsLeft(daemons.directory / "balancer.sock", "node1").count() == left
