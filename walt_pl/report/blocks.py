"""Parts of the page as plain values: text, tables, plots and moving pictures, in sections. The template makes HTML of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from walt_pl.terminal_text import printable

MOST_CHARACTERS = 300
"""Characters of a cell, a caption or a name from a file."""
MOST_ROWS = 200
"""Rows of a table."""


@dataclass(frozen=True)
class Text:
    """A paragraph, with a command to type where one helps."""

    text: str
    command: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A table with a caption; folded ones open with a click."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    kind: str = "table"

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """Return the rows that are shown."""
        return self.rows[:MOST_ROWS]

    @property
    def hidden(self) -> int:
        """Return the number of the other rows."""
        return max(0, len(self.rows) - MOST_ROWS)


@dataclass(frozen=True)
class Plot:
    """A plot as SVG."""

    caption: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Plots:
    """Plots side by side, as many as there is room for."""

    plots: Sequence[Plot]
    kind: str = "plots"


@dataclass
class MovingPicture:
    """A moving picture that is encoded once the room for it is known."""

    caption: str
    alt: str
    load: Callable[[], bytes]
    """Read the file or the record. A file that cannot be read is a ValueError or an OSError."""
    captions: Sequence[str] = ()
    """Captions of its clips, from the file."""
    moving: bytes = b""
    """Animated WebP; empty where it was left out."""
    still: bytes = b""
    """Its first frame as WebP, for readers who asked for less motion."""
    size: tuple[int, int] = (0, 0)
    """Columns and rows in pixels."""
    left_out: str = ""
    """Reason why it is not shown."""


@dataclass(frozen=True)
class Pictures:
    """Moving pictures side by side."""

    pictures: Sequence[MovingPicture]
    kind: str = "pictures"


@dataclass(frozen=True)
class Record:
    """A long text in a fixed font, folded."""

    caption: str
    text: str
    kind: str = "record"


@dataclass(frozen=True)
class Group:
    """Blocks under a heading of their own."""

    title: str
    blocks: Sequence[Block]
    kind: str = "group"


Block = Text | Table | Plots | Pictures | Record | Group


@dataclass(frozen=True)
class Section:
    """A section of the page, with an entry in the table of contents."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    problems: list[str] = field(default_factory=list)


def pictures_of(blocks: Sequence[Block]) -> list[MovingPicture]:
    """Return all moving pictures of blocks, in their order."""
    found: list[MovingPicture] = []
    for block in blocks:
        if isinstance(block, Pictures):
            found += block.pictures
        elif isinstance(block, Group):
            found += pictures_of(block.blocks)
    return found


def format_number(value: object) -> str:
    """Return a figure with four digits, or any other value as a short text."""
    return f"{value:.4g}" if isinstance(value, float) else shorten(value)


def shorten(text: object, most: int = MOST_CHARACTERS) -> str:
    """Return a text of limited length in one line, with control characters as escapes, so that no file can turn or hide text."""
    one_line = " ".join(str(text)[: 4 * most].split())
    safe = printable(one_line)
    return safe if len(safe) <= most else f"{safe[: most - 1]}…"
