"""Tables on a terminal, and in a file: no word of them is lost."""

import io
import re

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tests.helpers.environment import Walt
from walt_pl.cli import console as console_module
from walt_pl.cli.console import console, print_table

PATH = "experiments/a_folder_with_a_long_name_and_no_blanks/[draft]/base.yaml"
WORDS = ["base", "done", PATH, "vae 0123456789ab, base ba9876543210", "2026-11-26T13:36:36", "1234567 on a-host-with-a-long-name"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def wide_table() -> Table:
    table = Table(*(f"column {place}" for place in range(len(WORDS))))
    table.add_row(*WORDS)
    return table


def test_print_table_without_a_terminal_has_every_row_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    file = io.StringIO()
    print_table(Group(wide_table(), Text("word " * 60)), file)
    lines = file.getvalue().splitlines()
    assert len(lines) == 6 and [cell.strip() for cell in lines[3].strip("│").split("│")] == WORDS
    assert max(map(len, lines)) < 320, "no line is filled up to its limit"


@pytest.mark.parametrize("width", [40, 80, 100])
def test_print_table_on_a_terminal_wraps_cells_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    print_table(Group(wide_table()), file)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width and "…" not in file.getvalue()
    rows = [line.strip("│").split("│") for line in lines[lines.index(next(line for line in lines if line.startswith("┡"))) + 1 : -1]]
    for word, parts in zip(WORDS, zip(*rows, strict=True), strict=True):
        assert "".join("".join(parts).split()) == "".join(word.split())


def test_print_table_leaves_a_long_line_of_text_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = f"python -m walt_pl fit --config {PATH}"
    for file in (Terminal(), io.StringIO()):
        print_table(command, file)
        assert file.getvalue() == f"{command}\n"


def test_console_is_as_wide_as_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert console(Terminal()).width == 77
    assert console(io.StringIO()).width == console_module.UNLIMITED


def test_plan_command_into_a_file_names_every_column(walt: Walt) -> None:
    said = walt("plan", "--config", "experiments/shapes/base.yaml").said
    titles = ["engine", "parameters", "gradients", "optimizer", "ema", "buffers", "activations", "total", "24 GB", "40 GB", "80 GB"]
    titles.append("host (node)")
    assert titles in [[cell.strip() for cell in line.strip("┃").split("┃")] for line in said.splitlines()]
    assert "…" not in said
