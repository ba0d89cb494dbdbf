"""Clips of a folder of videos or images."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from walt_pl.data.index import IndexEntry
from walt_pl.evaluation.clip_reading import WORKERS, read_entries
from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips
from walt_pl.media.counting import count_frames
from walt_pl.media.extensions import kind_of
from walt_pl.media.types import MediaError, Size


class _File(NamedTuple):
    name: str
    """Path below the folder, with slashes."""
    kind: str
    bytes: int
    modified: int
    """Time of the last change in nanoseconds since 1970."""


class FolderSource(ClipSource):
    """Videos and images of a folder and of the folders in it, in natural order of their names: clip2 before clip10.

    Args:
        text: Path of the folder, as typed.

    Raises:
        ValueError: There is no video and no image in it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.folder = Path(text)
        self._files, self._left_out = _list(self.folder)
        if not self._files:
            others = "".join(f", {count:,} {reason}" for reason, count in self._left_out.items())
            raise ValueError(f"{text}: no video or image in this folder{others}; give a folder of videos (.mp4, ...) or images (.png, ...)")

    def __len__(self) -> int:
        return len(self._files)

    def facts(self) -> dict[str, Any]:
        """Return path, number of files, and a hash of names, sizes and times of change. The bytes themselves are not hashed."""
        listed = hashlib.sha256()
        for file in self._files:
            listed.update(b"%s\0%d\0%d\n" % (os.fsencode(file.name), file.bytes, file.modified))
        return {
            "kind": "folder",
            "path": self.text,
            "split": None,
            "files": len(self._files),
            "names_sizes_and_times_sha256": listed.hexdigest(),
        }

    def kinds(self) -> Sequence[str]:
        return [file.kind for file in self._files]

    def left_out(self) -> dict[str, int]:
        return self._left_out

    def lengths(self) -> Sequence[int]:
        return self._lengths

    @cached_property
    def _lengths(self) -> list[int]:
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(self._length, self._files))

    def _length(self, file: _File) -> int:
        if file.kind == "image":
            return 1
        try:
            return count_frames(self.folder / file.name)
        except MediaError:
            return 0

    def names(self) -> Sequence[str]:
        return [file.name for file in self._files]

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: Size | None) -> ReadClips:
        clips, failures = read_entries([self._entry(self._files[draw.item]) for draw in draws], draws, frames, stride, size)
        return ReadClips(clips, failures=failures)

    def _entry(self, file: _File) -> IndexEntry:
        """Return a file as a row of an index that was never examined."""
        path = (self.folder / file.name).absolute()
        return IndexEntry(path, file.kind, 0, 0.0, 0, 0, "", -1, "", file.bytes, modified=file.modified)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers in names by their value."""
    parts: list[str | int] = list(re.split(r"([0-9]+)", name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _list(folder: Path) -> tuple[list[_File], dict[str, int]]:
    """Return the videos and images below a folder in natural order, and the number of other files by reason.

    Links are followed, and each folder is listed once. Hidden folders are not listed.
    """
    files: list[_File] = []
    left_out = Counter[str]()
    seen = set[tuple[int, int]]()

    def note(error: OSError) -> None:
        left_out["folders that cannot be read"] += 1

    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            kind = kind_of(name)
            if name.startswith("."):
                left_out["hidden files"] += 1
            elif kind is None:
                left_out["files that are neither videos nor images"] += 1
            else:
                path = Path(parent, name)
                try:
                    status = path.stat()
                except OSError:  # a link to nothing
                    left_out["links to nothing"] += 1
                    continue
                files.append(_File(path.relative_to(folder).as_posix(), kind, status.st_size, status.st_mtime_ns))
    return sorted(files, key=lambda file: natural_order(file.name)), dict(sorted(left_out.items()))
