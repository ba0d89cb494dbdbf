"""The data index: one Parquet file that lists every clip and image of a data set, and the rows as Arrow beside it.

`NAME.parquet` is the index: small enough to hand around. Its SHA-256 identifies the data in caches and artifacts (equal rows give
equal bytes). `NAME.arrow` holds the rows as one Arrow record batch that processes map into memory. So ten million rows cost a worker
only the pages that it reads. The Arrow file carries the hash of its Parquet file. It is written again where it is missing, damaged or
of another Parquet file. `NAME.sha256` has the hashes of both (index_sums.py). The process that opens an index compares them and checks
every row; its workers map the file that it has checked. docs/DATA.md describes every column.

Rows are sorted by (split, kind), and otherwise stay in the order of the source: a split's videos are one slice of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from walt_pl.data.index_arrow import MappedRows, map_rows, write_arrow
from walt_pl.data.index_sums import begin_replacing
from walt_pl.data.index_table import DEFAULTS, KINDS, LARGE, SCHEMA, conform, sort_rows
from walt_pl.files import whole_file
from walt_pl.plain_text import decode_text, split_lines
from walt_pl.untrusted import read_bytes

MAX_CLASSES_BYTES = 64 << 20
"""Bytes of NAME.classes.txt."""


class MediaKey(NamedTuple):
    """The identity of an index row: a file, a member of a tar shard, or a piece of either."""

    path: str
    """As written in the index."""
    offset: int = -1
    """Byte of the tar shard at which the member begins; -1: the file itself."""
    begin: float = 0.0
    """Second at which the piece begins."""
    end: float = 0.0
    """Second before which the piece ends; 0: at the end of the file."""

    @property
    def whole(self) -> MediaKey:
        """Return the key of the whole file or member."""
        return MediaKey(self.path, self.offset)

    def __str__(self) -> str:
        member = "" if self.offset < 0 else f", member at byte {self.offset}"
        until = f"to {self.end:g}" if self.end else "on"
        return f"{self.path}{member}" + (f", from second {self.begin:g} {until}" if self != self.whole else "")


@dataclass(frozen=True)
class IndexEntry:
    """One clip or image of the index: a file, or a piece of one. `frames` and `duration` are those of the piece."""

    path: Path
    """Absolute path of the file."""
    kind: str
    """"video" or "image"."""
    frames: int
    """Frames of the clip, 1 for an image."""
    fps: float
    """Frames per second of the file, 0 for an image."""
    width: int
    """Columns of pixels."""
    height: int
    """Rows of pixels."""
    caption: str
    """Text that describes it, "" where there is none."""
    label: int
    """Class number, -1 where there is none."""
    split: str
    """Part of the data set: train, val, ..."""
    bytes: int
    """Size of the file (or of the member of a tar shard) when it was indexed."""
    duration: float = 0.0
    """Seconds from the first frame to the end of the last one; 0 for an image, and where it was not measured."""
    decoder: str = ""
    """The decoder that reads this file correctly: "decord", "pyav" or "pillow". Empty: not examined."""
    offset: int = -1
    """Byte of the tar shard `path` at which the member begins; -1: `path` is the file itself."""
    modified: int = 0
    """Time of the last change of the file (or the shard), in nanoseconds since 1970; 0: unknown."""
    variable_rate: bool = False
    """True if the frames of the file are not evenly spaced in time."""
    begin: float = 0.0
    """Second of the file at which the clip begins."""
    end: float = 0.0
    """Second of the file before which the clip ends; 0: at the end of the file."""
    interlaced: bool = False
    """True if most frames of the file are marked as interlaced."""
    hdr: bool = False
    """True if the colours of the file are HDR (PQ or HLG)."""
    more_captions: tuple[str, ...] = ()
    """Further captions beside `caption`. Training draws one of all."""

    @property
    def place(self) -> MediaKey:
        """Return the key of the entry, with its absolute path, as messages name it."""
        return MediaKey(str(self.path), self.offset, self.begin, self.end)


class IndexEntries(Sequence[IndexEntry]):
    """Rows of a mapped index. An entry is made on access, a slice is a view, and pickling copies no row."""

    def __init__(self, mapped: MappedRows, rows: range, folder: Path) -> None:
        self._mapped = mapped
        self._rows = rows
        self._folder = folder

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, number: int) -> IndexEntry: ...

    @overload
    def __getitem__(self, number: slice) -> IndexEntries: ...

    def __getitem__(self, number: int | slice) -> IndexEntry | IndexEntries:
        """Return the entry at `number`, or the entries of a slice.

        Raises:
            IndexError: `number` lies past either end.
        """
        if isinstance(number, slice):
            return IndexEntries(self._mapped, self._rows[number], self._folder)
        if not -len(self) <= number < len(self):
            raise IndexError(f"entry {number} of an index with {len(self)}")
        row = self._mapped.rows.slice(self._rows[number], 1).to_pylist()[0]
        return IndexEntry(**(row | {"path": self._folder / row["path"], "more_captions": tuple(row["more_captions"])}))

    def __iter__(self) -> Iterator[IndexEntry]:
        return (self[number] for number in range(len(self)))

    def column(self, name: str) -> Any:
        """Return a column of these rows: a NumPy array of numbers or booleans, a pyarrow array of strings or lists of strings.

        Both are views of the mapped file, read-only. The exceptions are `variable_rate` (its bits become booleans) and slices with a step.
        "path" is as written in the index: relative to the index's folder.

        Raises:
            KeyError: The index has no such column.
        """
        values = self._mapped.rows.column(name)
        if self._rows.step == 1:
            values = values.slice(self._rows.start, len(self))
        else:
            values = values.take(pa.array(np.asarray(self._rows, np.int64)))
        if pa.types.is_large_string(values.type) or pa.types.is_large_list(values.type):
            return values
        return values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type))

    def places(self, positions: NDArray[np.int64]) -> list[MediaKey]:
        """Return the media keys of the entries at some positions, with paths as written in the index."""
        paths, *numbers = (self.column(name) for name in MediaKey._fields)
        return list(map(MediaKey, paths.take(pa.array(positions)).to_pylist(), *(column[positions].tolist() for column in numbers)))


class Index:
    """One split of a data index.

    `videos` and `images` hold the entries of the split in the order of the file. `sha256` is the hash of the whole Parquet file. `splits`
    names every split of the file. The Arrow file beside the index is written where it is missing or belongs to another index. If that
    folder cannot be written, the Arrow file goes into the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache).

    Args:
        path: The Parquet file.
        split: Name of the split.

    Raises:
        ValueError: The file is missing, is no Parquet, lacks columns, or has nothing in `split`.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path).absolute()
        self.split = split
        mapped = map_rows(self.path)
        self.sha256 = mapped.sha256
        self.splits = sorted(mapped.slices)
        if split not in mapped.slices:
            found = ", ".join(self.splits) or "none, the index is empty"
            message = f'{self.path}: nothing in split "{split}" (splits found: {found})'
            if split == "val":
                again = f"python -m walt_pl index SOURCE --out {self.path} --val 0.02 --allow-moves"
                message += f"; index again and train anew, as val takes clips of train ({again}), or set --data.val_videos 0"
            raise ValueError(message)
        slices = mapped.slices[split]
        self.videos, self.images = (IndexEntries(mapped, range(*slices.get(kind, (0, 0))), self.path.parent) for kind in KINDS)


def write_index(entries: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write an index from rows, whole or not at all: `path` and the Arrow file beside it.

    Args:
        entries: Rows with the columns of `SCHEMA`. Columns with a default in `IndexEntry` may be left out. Their `path` is relative to
            the folder of the index.
        path: The Parquet file.

    Raises:
        ValueError: A row lacks a column, has another one, a wrong type, an unknown kind or an absolute path.
    """
    for number, entry in enumerate(entries):
        if set(DEFAULTS | dict(entry)) != set(SCHEMA.names):
            wanted, found = ", ".join(SCHEMA.names), ", ".join(sorted(entry))
            raise ValueError(f"{path}: entry {number}: wanted the columns {wanted}, found {found}")
    try:
        table = pa.Table.from_pylist([DEFAULTS | dict(entry) for entry in entries], schema=LARGE)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: a column has a wrong type: {error}") from error
    write_table(table, path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write an index from a table with the columns of `SCHEMA`, whole or not at all: `path` and the Arrow file beside it.

    Raises:
        ValueError: As in `write_index`.
    """
    table, slices = sort_rows(conform(table, path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        # Without Arrow's own schema: it would declare the strings as large. Checksums of pages are for a file without NAME.sha256.
        pq.write_table(table, file, store_schema=False, write_page_checksum=True)
        sha256 = begin_replacing(path, file)
    write_arrow(table, slices, sha256, path.with_suffix(".arrow"), path)


def class_names(path: Path) -> list[str]:
    """Return the names of the classes of an index by label: the lines of NAME.classes.txt. Empty where there is no such file.

    Raises:
        ValueError: The file is no text, no plain file, or larger than `MAX_CLASSES_BYTES`.
    """
    names = path.with_suffix(".classes.txt")
    if not os.path.lexists(names):
        return []
    try:
        text = decode_text(read_bytes(Path(os.path.realpath(names)), MAX_CLASSES_BYTES))
    except (ValueError, OSError) as error:
        raise ValueError(f"{names}: wanted a text with the name of a class in each line: {error}") from None
    return split_lines(text)


def media_keys(table: pa.Table) -> list[MediaKey]:
    """Return the media key of each row, in order."""
    return list(map(MediaKey, *(table[name].to_pylist() for name in MediaKey._fields)))
