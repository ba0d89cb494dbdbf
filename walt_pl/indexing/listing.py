"""Rows that a source lists, before any file is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SourceLayout = Literal["auto", "folder", "table", "ucf101", "kinetics", "classes", "webdataset"]
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A row for the index: a clip or image, and the metadata in its source."""

    file: str
    """Path of the file, or of the tar shard that holds it."""
    kind: str
    """"video" or "image"."""
    caption: str = ""
    """Text that describes it, "" where the source has none."""
    label: int | str = -1
    """Class, by number or by name; -1 where the source has none."""
    split: str = ""
    """Part of the data set, "" where the source has none."""
    offset: int = -1
    """Byte of the shard at which the member begins; -1: `file` is the file itself."""
    bytes: int = -1
    """Size of the member; -1: `file` is the file itself."""
    begin: float = 0.0
    """Second of the file at which the clip begins."""
    end: float = 0.0
    """Second before which the clip ends; 0: at the end of the file."""
    family: str = ""
    """Clips of one family (cut from one film) are held out together; "": the clip is a family of its own."""


@dataclass
class SourceListing:
    """All items that a source lists."""

    layout: SourceLayout
    items: list[SourceItem]
    notes: list[str] = field(default_factory=list)
    """Items that were left out, and why."""
    classes: list[str] = field(default_factory=list)
    """Names of classes in the order of their official numbers, where the source has one."""


def split_of(folders: Iterable[str]) -> str:
    """Return the split that the first of some folder names stands for, or "" where none does."""
    return next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), "")


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without surrounding white space.

    Raises:
        ValueError: The file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as UTF-8") from error
