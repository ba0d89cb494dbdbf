"""Notice folders that look like classes in a source that is read as a plain folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from walt_pl.indexing.listing import SourceItem, split_of

_LEAST = 2
"""Folders, and files of each, from which on they may be classes."""
_SHOWN = 3
_DATE = re.compile(r"(19|20)\d\d|^(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)", re.IGNORECASE)


def hint_class_folders(source: Path, items: Sequence[SourceItem]) -> list[str]:
    """Return a note if the folders of a source look like classes, as [split/]CLASS/files do.

    All files lie in such a folder, each folder has several, no file has a caption, and the names are words: no dates, and not one word
    with numbers (part1, part2; cam_01, cam_02).

    Args:
        source: The folder.
        items: The items, as layout "folder" lists them.
    """
    if any(item.caption for item in items):
        return []
    files = Counter[str]()
    for item in items:
        folders = Path(item.file).relative_to(source).parts[:-1]
        inner = folders[1:] if split_of(folders[:1]) else folders
        if len(inner) != 1 or split_of(inner):
            return []
        files[inner[0]] += 1
    words = {re.sub(r"[\W\d_]+", "", name).lower() for name in files}
    alike = len(words) < len(files) or "" in words or any(_DATE.search(name) for name in files)
    if alike or len(files) < _LEAST or min(files.values()) < _LEAST:
        return []
    shown = ", ".join([*sorted(files)[:_SHOWN], *(["..."] if len(files) > _SHOWN else [])])
    return [f"its {len(files):,} folders look like classes ({shown}): --layout classes gives their clips labels and captions"]
