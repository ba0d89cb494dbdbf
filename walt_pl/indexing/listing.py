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
    """One row to be: where a clip or image is, and what its source says of it."""

    file: str
    """Path of the file, or of the tar shard that holds it."""
    kind: str
    """"video" or "image"."""
    caption: str = ""
    """What it shows, "" where the source does not say."""
    label: int | str = -1
    """Class, by number or by name; -1 where the source does not say."""
    split: str = ""
    """Part of the data set, "" where the source does not say."""
    offset: int = -1
    """Where the member's bytes begin in the shard; -1: `file` is the file itself."""
    bytes: int = -1
    """Size of the member; -1: `file` is the file itself."""
    begin: float = 0.0
    """Second of the file at which the clip begins."""
    end: float = 0.0
    """Second before which it ends; 0: with the file."""
    family: str = ""
    """Clips of one family (cut from one film) are held out together; "": of its own."""


@dataclass
class SourceListing:
    """Everything that a source lists."""

    layout: SourceLayout
    items: list[SourceItem]
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    classes: list[str] = field(default_factory=list)
    """Names of classes in the order of their official numbers, where the source has one."""


def split_of(folders: Iterable[str]) -> str:
    """The split that the first folder of such a name says."""
    return next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), "")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as UTF-8") from error
