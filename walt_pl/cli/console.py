"""Print tables so that no word of them is cut, on a terminal and without one."""

import sys
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table

from walt_pl.terminal_text import printable

UNLIMITED = 100_000
"""Characters of a line where there is no terminal: a file or another program takes lines of any length."""


def console(file: TextIO | None = None) -> Console:
    """Return the console of standard output, or of another stream.

    Square brackets are printed as they are, because names of files have them. Styles are those of `rich.text.Text`.
    """
    found = Console(file=file or sys.stdout, markup=False, emoji=False, highlight=False)
    return found if found.is_terminal else Console(file=found.file, markup=False, emoji=False, highlight=False, width=UNLIMITED)


def print_table(content: RenderableType, file: TextIO | None = None) -> None:
    """Print a table, a group of tables, or text.

    On a terminal that is too narrow, cells are wrapped between words, and words that are longer than their column go on in the next line.
    """
    for table in _tables(content):
        for column in table.columns:
            column.overflow = "fold"  # rich's own choice is an ellipsis
    # With soft wrapping, a terminal wraps text by itself, and a copied command is one line.
    console(file).print(printable(content) if isinstance(content, str) else content, soft_wrap=isinstance(content, str))


def _tables(content: RenderableType) -> list[Table]:
    if isinstance(content, Group):
        return [table for part in content.renderables for table in _tables(part)]
    return [content] if isinstance(content, Table) else []
