"""Rows that a source lists, before any file is decoded."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from walt_pl.data.caption_values import MAX_CAPTIONS
from walt_pl.data.labels import LABELS
from walt_pl.data.tar_members import MAX_NAME, MAX_TEXT_BYTES
from walt_pl.media.extensions import NOT_READ
from walt_pl.plain_text import decode_text, describe_encoding, is_one_line
from walt_pl.untrusted import UntrustedError, read_bytes

MAX_LIST_BYTES = 64 << 20
"""Bytes of a list of a data set, such as the names of its classes."""
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
    findings: tuple[tuple[str, str], ...] = ()
    """Each field of the source's words about it that is not used, and why, such as ("caption", "2,000,000,000 bytes")."""
    more_captions: tuple[str, ...] = ()
    """Further captions beside `caption`."""


@dataclass
class SourceListing:
    """All items that a source lists."""

    layout: SourceLayout
    items: list[SourceItem]
    notes: list[str] = field(default_factory=list)
    """Items that were left out, and why."""
    classes: list[str] = field(default_factory=list)
    """Names of classes in the order of their official numbers, where the source has one."""
    mixture: str = ""
    """The first label that is a number among names, or a name among numbers, with its place; "" where there is none."""


def note_unread(counts: Mapping[str, int]) -> list[str]:
    """Return a note for each ending of `NOT_READ`: how many such pictures are left out, and how to convert one.

    Args:
        counts: number of files by ending.
    """
    return [
        f"left out: {counts[ending]:,} pictures .{ending}, which are not read; convert them, for example: {command}"
        for ending, command in NOT_READ.items()
        if counts.get(ending)
    ]


def split_of(folders: Iterable[str]) -> str:
    """Return the split that the first of some folder names stands for, or "" where none does."""
    return next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), "")


def normalize_split(name: str) -> str:
    """Return "train", "val" or "test" for a name that stands for one of them, such as "Validation". Any other name stays."""
    return SPLITS.get(name.strip().lower(), name)


def sift(items: Iterable[SourceItem]) -> tuple[list[SourceItem], list[str]]:
    """Leave out what no index can hold: a caption or label of an item, or an item whose split or path is the fault.

    Returns:
        The items, and a note with the count and the first one of each field that has faults.
    """
    sound: list[SourceItem] = []
    counts, first = Counter[str](), dict[str, str]()
    for item in items:
        checked = _check_item(item)
        findings = checked.findings if checked is not None else (("the clip", "its path or split is no text of one line"),)
        counts.update({name for name, _ in findings})
        for name, reason in findings:
            first.setdefault(name, f"{item.file[:200]!a}: {f'{name}: {reason}'[:400]}")
        if checked is not None:
            sound.append(checked)
    notes = [f"{name} not used, places: {count:,}, the first: {first[name]}" for name, count in sorted(counts.items())]
    if several := sum(bool(item.more_captions) for item in sound):
        notes.append(f"clips and images of several captions: {several:,}; training draws one of them in each epoch")
    return sound, notes


def _check_item(item: SourceItem) -> SourceItem | None:
    if "\0" in item.file or not is_name(item.split):
        return None
    item = _check_captions(item)
    if (split := normalize_split(item.split)) != item.split:
        item = replace(item, split=split)
    if isinstance(item.label, int):
        if item.label not in LABELS:
            item = _add_finding(replace(item, label=-1), "label", f"{str(item.label)[:20]} is not a number of 32 bits")
    elif not is_name(item.label):
        item = _add_finding(replace(item, label=-1), "label", f"{item.label[:40]!a} is no Unicode, long, or of several lines")
    return item


def _check_captions(item: SourceItem) -> SourceItem:
    """Return the item without captions that no index can hold."""
    captions = (item.caption, *item.more_captions)
    if wrong := [text for text in captions if len(text) > MAX_TEXT_BYTES or not _is_unicode(text)]:
        first, *more = [text for text in captions if text not in wrong] or [""]
        item = replace(item, caption=first, more_captions=tuple(more))
        item = _add_finding(item, "caption", f"{len(wrong[0]):,} characters, or no Unicode")
    if len(item.more_captions) >= MAX_CAPTIONS:
        item = replace(item, more_captions=item.more_captions[: MAX_CAPTIONS - 1])
        item = _add_finding(item, "caption", f"{len(captions):,} of one clip, the first {MAX_CAPTIONS:,} are used")
    return item


def _add_finding(item: SourceItem, name: str, reason: str) -> SourceItem:
    """Return the item with one more finding: a field of its source that is not used, and why."""
    return replace(item, findings=(*item.findings, (name, reason)))


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a class or a split: short, of one line, and Unicode."""
    return len(text) <= MAX_NAME and is_one_line(text) and _is_unicode(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path, source: Path, most: int = MAX_LIST_BYTES) -> str:
    """Read a UTF-8 file of a source, without surrounding white space.

    A link is followed to a plain file of the source. It might else lead to private words, which an index hands around. A linked folder
    belongs to the source: its files are listed.

    Raises:
        ValueError: The file is not UTF-8, is no plain file, is a link to a place outside of the source, or has more than `most` bytes.
    """
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in (source, path.parent)):
        raise ValueError(f"{path}: a link to a place outside of {source}; put a copy of the file in its place (cp -L)")
    try:
        content = read_bytes(real, most)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    try:
        text = decode_text(content)
    except UntrustedError as error:
        raise ValueError(f"{path}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def read_lines(path: Path, left_out: list[str]) -> Iterator[str]:
    """Yield the lines of a UTF-8 file of any size, with their ends. Those before the first text are left out.

    Args:
        path: The file.
        left_out: Gets a note for a line of more than `MAX_TEXT_BYTES` characters, which is left out.

    Raises:
        ValueError: The file is not UTF-8, or is no plain file.
    """
    real = Path(os.path.realpath(path))
    if not real.is_file():
        raise ValueError(f"{path}: not a plain file")
    began = False
    with real.open("rb") as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        number = 0
        try:
            while line := lines.readline(MAX_TEXT_BYTES):
                number += 1
                if len(line) == MAX_TEXT_BYTES and not line.endswith("\n"):
                    left_out.append(f"{path}:{number}: a line of more than {MAX_TEXT_BYTES:,} characters")
                    while line and not line.endswith("\n"):
                        line = lines.readline(MAX_TEXT_BYTES)
                    line = "\n"
                began = began or bool(line.strip())
                if began:
                    yield line if line.strip() else "\n"
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {describe_encoding(error, f'behind line {number}')}") from error
