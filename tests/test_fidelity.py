"""docs/FIDELITY.md names tests and files that are there."""

import re
from pathlib import Path

import pytest

from walt_pl.paper.page import HEADINGS
from walt_pl.paper.row import Row
from walt_pl.paper.rows import DEFAULT, ROWS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "FIDELITY.md").read_text(encoding="utf-8")


def test_fidelity_every_named_test_exists() -> None:
    sources = {path.relative_to(ROOT / "tests").as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    names = {path.rsplit("/", 1)[-1]: path for path in sources}
    file, seen = "", 0
    for quoted in re.findall(r"`([^`]*test_[^`]*)`", PAGE):
        named, _, test = quoted.partition("::")
        if named:
            file = named if named in sources else names[named]
        if test:
            assert f"def {test}(" in sources[file], f"{file} has no {test}"
            seen += 1
    assert seen > 50


def test_fidelity_every_named_file_exists() -> None:
    for name in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert any((folder / name).is_file() for folder in (ROOT, ROOT / "walt_pl", ROOT / "tests")), name


def test_fidelity_every_statement_names_a_test_or_says_that_there_is_none() -> None:
    tables = re.findall(r"^\| Statement \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [line.split(" | ") for table in tables for line in table.splitlines()]
    assert len(tables) == 6 and len(rows) > 40
    assert not [row[0] for row in rows if "test_" not in row[2] and "no test" not in row[2]]


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != DEFAULT and row.table != "causes"], ids=lambda row: row.name)
def test_fidelity_links_a_result_of_the_paper_to_every_row(row: Row) -> None:
    heading = HEADINGS[row.table].lower().replace(",", "").replace(" ", "-")
    assert f"[{row.text}](RESULTS.md#{heading})" in PAGE
