from pathlib import Path

import pytest

from bench.__main__ import main, parse, plan
from bench.contestants import CONTESTANTS, chosen
from bench.results import dump
from tests.unit.bench.figures_of_a_run import RESULTS


def names(*argv: str) -> list[str]:
    return [each.name for each in plan(parse(argv)).contestants]


def test_all_take_part_and_direct_comes_first_and_last() -> None:
    assert names() == [
        *("direct", "ecmp", "nftables L3DSR", "HAProxy", "HAProxy splice", "NGINX"),
        *("l3dsr-raw", "l3dsr-ebpf", "direct again"),
    ]
    assert plan(parse([])).required == []


def test_engines_are_chosen_apart_from_other_contestants() -> None:
    assert names("--engines=ebpf") == [each.name for each in CONTESTANTS if each.name != "l3dsr-raw"]
    assert names("--contestants=ecmp,HAProxy splice") == ["direct", "ecmp", "HAProxy splice", "direct again"]
    assert names("--contestants=NGINX", "--engines=raw") == ["direct", "NGINX", "l3dsr-raw", "direct again"]
    assert [each.name for each in chosen(["l3dsr-raw"], None)] == ["direct", "l3dsr-raw", "direct again"]


def test_who_is_asked_for_by_name_is_required() -> None:
    assert plan(parse(["--contestants=NGINX", "--engines=raw,ebpf"])).required == [
        *("NGINX", "l3dsr-raw", "l3dsr-ebpf"),
    ]


def test_effort_is_chosen_and_then_overridden() -> None:
    effort = plan(parse(["--quick", "--rounds=3", "--idle-flows=500"])).effort
    assert (effort.rounds, effort.mtu_rounds, effort.idle_flows, effort.load_seconds) == (3, 3, 500, 1)
    assert plan(parse([])).effort.idle_flows == 100_000


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--rounds=0", "0 is not one of 1..100"),
        ("--rounds=101", "101 is not one of 1..100"),
        ("--rounds=many", "invalid"),
        ("--idle-flows=200000", "200000 is not one of 1..150000"),
        ("--engines=raw,fast", "no fast; there are raw, ebpf"),
        ("--contestants=squid", "no squid; there are direct, ecmp"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    option: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([option])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_earlier_runs_readings_are_reported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "earlier.json").write_text(dump(RESULTS))
    argv = [f"--readings={tmp_path}/earlier.json", f"--output={tmp_path}/again"]
    assert main(argv) == 0
    assert "| l3dsr-raw    | 0.65 (0.50, 0.80) |" in capsys.readouterr().out
    assert (tmp_path / "again" / "readings.json").read_text() == dump(RESULTS)


def test_strict_fails_where_something_wanted_is_not_reached(tmp_path: Path) -> None:
    (tmp_path / "earlier.json").write_text(dump(RESULTS))
    assert main([f"--readings={tmp_path}/earlier.json", f"--output={tmp_path}", "--strict"]) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"series": []}', "[1]", '{"series": [{}], "observations": []}'])
def test_readings_that_are_none_end_with_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "earlier.json").write_text(text)
    assert main([f"--readings={tmp_path}/earlier.json", f"--output={tmp_path}/again"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench: not the readings of a run: ")
