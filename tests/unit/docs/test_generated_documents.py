from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

import pytest

from common.wire.handoff import Field
from docs import generate


class Door(Enum):
    SHUT = auto()
    OPEN = auto()
    BROKEN = auto()


class Push(Enum):
    GENTLE_PUSH = auto()
    PULL = auto()
    KICK = "kick (hard)"


DOOR = [
    (Door.SHUT, Push.GENTLE_PUSH, Door.OPEN),
    (Door.SHUT, Push.KICK, Door.BROKEN),
    (Door.SHUT, Push.KICK, Door.OPEN),
    (Door.OPEN, Push.PULL, Door.SHUT),
    (Door.OPEN, Push.GENTLE_PUSH, Door.OPEN),
]
GENERATORS: dict[str, Callable[[], str]] = {"greeting": lambda: "hello\n\nworld", "farewell": lambda: "bye"}


def test_transitions_become_a_state_diagram() -> None:
    assert generate.mermaid(DOOR).splitlines() == [
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> SHUT",
        "    SHUT --> OPEN: gentle push, kick (hard)",
        "    SHUT --> BROKEN: kick (hard)",
        "    OPEN --> SHUT: pull",
        "    OPEN --> OPEN: gentle push",
        "    BROKEN --> [*]",
        "```",
    ]


def test_a_layout_becomes_a_bit_diagram() -> None:
    layout = (
        Field("type", 4, ""),
        Field("F", 1, ""),
        Field("0", 3, ""),
        Field("id", 8, ""),
        Field("tag", 32, ""),
    )
    assert generate.bit_diagram(layout, row_bits=16).splitlines() == [
        " 0                   1",
        " 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5",
        "+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+",
        "|  type |F|  0  |       id      |",
        "+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+",
        "|              tag              |",
        "+                               +",
        "|                               |",
        "+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+",
    ]


def test_a_layout_becomes_a_table_of_fields() -> None:
    layout = (
        Field("type", 7, "what"),
        Field("F", 1, "last"),
        Field("id", 8, "who"),
        Field("tag", 16, "proof"),
    )
    assert generate.field_table(layout).splitlines() == [
        "| offset | size | field | meaning |",
        "|---|---|---|---|",
        "| 0, bit 0 | 7 bits | type | what |",
        "| 0, bit 7 | 1 bit | F | last |",
        "| 1 | 1 byte | id | who |",
        "| 2 | 2 bytes | tag | proof |",
    ]


def test_only_what_stands_between_markers_is_replaced() -> None:
    text = (
        "# Title\n\n<!-- generated: greeting -->\nold\n<!-- end generated -->\nbetween\n"
        "<!-- generated: farewell -->\n<!-- end generated -->\nafter\n"
    )
    made = generate.regenerated(text, GENERATORS)
    assert made == (
        "# Title\n\n<!-- generated: greeting -->\nhello\n\nworld\n<!-- end generated -->\nbetween\n"
        "<!-- generated: farewell -->\nbye\n<!-- end generated -->\nafter\n"
    )
    assert generate.regenerated(made, GENERATORS) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n<!-- generated: nothing -->\n<!-- end generated -->", "line 2: no generator is named 'nothing'"),
        ("<!-- generated: greeting -->\nx", "line 1: this part has no end"),
        ("x\n<!-- end generated -->", "line 2: an end without a beginning"),
        (
            "<!-- generated: greeting -->\n<!-- generated: farewell -->\n<!-- end generated -->",
            "line 2: the part of line 1 has no end",
        ),
    ],
)
def test_markers_that_cannot_be_followed_are_refused(text: str, message: str) -> None:
    with pytest.raises(generate.MarkerError) as caught:
        generate.regenerated(text, GENERATORS)
    assert str(caught.value) == message


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "stale.md"
    path.parent.mkdir()
    path.write_text("<!-- generated: handoff-layout -->\nold\n<!-- end generated -->\n", encoding="utf-8")
    (tmp_path / "plain.md").write_text("nothing generated\n", encoding="utf-8")
    return path


def test_check_names_the_stale_document_and_writes_nothing(
    stale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stale.read_text(encoding="utf-8")
    assert generate.main(["--check"], [tmp_path]) == 1
    assert stale.read_text(encoding="utf-8") == before
    message = capsys.readouterr().err
    assert str(stale) in message
    assert "plain.md" not in message


def test_a_stale_document_is_written_and_then_passes_the_check(stale: Path, tmp_path: Path) -> None:
    assert generate.main([], [tmp_path]) == 0
    assert "| 48 | 8 bytes | tag |" in stale.read_text(encoding="utf-8")
    assert generate.main(["--check"], [tmp_path]) == 0


def test_a_document_with_broken_markers_ends_with_status_2(
    stale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale.write_text("<!-- end generated -->\n", encoding="utf-8")
    assert generate.main([], [tmp_path]) == 2
    assert f"{stale}: line 1" in capsys.readouterr().err


def test_the_project_s_own_documents_are_up_to_date() -> None:
    assert generate.main(["--check"]) == 0
