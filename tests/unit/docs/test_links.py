"""What documents refer to is there."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)(?P<file>[^)#\s]*)(?:#(?P<heading>[^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
_RECORD = re.compile(r"\badr/(?P<number>\d{4})\b(?!-)")


def prose(document: Path) -> str:
    return _FENCED.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    texts = (found["text"].lower() for found in _HEADING.finditer(prose(document)))
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def named(document: Path) -> str:
    return str(document.relative_to(PROJECT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.finditer(prose(document)):
        target = (document.parent / link["file"]).resolve() if link["file"] else document
        assert target.exists(), link[0]
        if link["heading"]:
            assert link["heading"] in anchors(target), link[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_decision_records_are_there(document: Path) -> None:
    for record in _RECORD.finditer(prose(document)):
        assert list((PROJECT / "docs" / "adr").glob(f"{record['number']}-*.md")), record[0]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, left = set(), [PROJECT / "README.md"]
    while left:
        document = left.pop()
        if document in reached:
            continue
        reached.add(document)
        targets = ((document.parent / link["file"]).resolve() for link in _LINK.finditer(prose(document)))
        left += [target for target in targets if target.suffix == ".md"]
    records = PROJECT / "docs" / "adr"
    assert [named(page) for page in DOCUMENTS if page not in reached and page.parent != records] == []
