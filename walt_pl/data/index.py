"""The data index: one Parquet file that lists every clip and image of a data set, and the rows as Arrow beside it.

`NAME.parquet` is the index: small enough to hand around. Its SHA-256 identifies the data in caches and artifacts (equal rows give
equal bytes). `NAME.arrow` holds the rows as one Arrow record batch that processes map into memory. So ten million rows cost a worker
only the pages that it reads. The Arrow file carries the hash of its Parquet file. It is written again where it is missing, damaged or
of another Parquet file. docs/DATA.md describes every column.

Rows are sorted by (split, kind), and otherwise stay in the order of the source: a split's videos are one slice of the file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from walt_pl.files import file_sha256, whole_file

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("kind", pa.string()),
        ("frames", pa.int32()),
        ("fps", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("bytes", pa.int64()),
        ("duration", pa.float32()),
        ("decoder", pa.string()),
        ("offset", pa.int64()),
        ("modified", pa.int64()),
        ("variable_rate", pa.bool_()),
        ("begin", pa.float64()),
        ("end", pa.float64()),
    ]
)
# In memory and in the Arrow file: the captions of ten million clips are more than the 2 GiB that `string` can address.
_LARGE = pa.schema([(field.name, pa.large_string() if field.type == pa.string() else field.type) for field in SCHEMA])
# Columns that a row may leave out.
_DEFAULTS: dict[str, object] = {
    "duration": 0.0,
    "decoder": "",
    "offset": -1,
    "modified": 0,
    "variable_rate": False,
    "begin": 0.0,
    "end": 0.0,
}
# Values in place of nulls, which other programs write into Parquet files.
_NULLS = {**_DEFAULTS, "caption": "", "label": -1}
KINDS = ("video", "image")


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

    @property
    def place(self) -> MediaKey:
        """Return the key of the entry, with its absolute path, as messages name it."""
        return MediaKey(str(self.path), self.offset, self.begin, self.end)


class _Mapped:
    """The Arrow file of an index, mapped into memory. It pickles as its path, and unpickling maps the file again.

    Raises:
        ValueError: The file is damaged, or belongs to another index than `sha256` says.
    """

    def __init__(self, file: Path, sha256: str) -> None:
        self.file = file
        self.sha256 = sha256
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            metadata = reader.schema.metadata or {}
            same = metadata.get(b"sha256") == sha256.encode() and reader.schema.equals(_LARGE)
            rows = reader.get_batch(0) if same and reader.num_record_batches == 1 else None
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file}: not an Arrow file that can be mapped: {error}") from error
        if rows is None:
            raise ValueError(f"{file}: not the rows of the index {sha256[:12]}...; was the index written again meanwhile? Start anew")
        self.rows: pa.RecordBatch = rows
        self.slices: dict[str, dict[str, list[int]]] = json.loads(metadata[b"slices"])

    def __reduce__(self) -> tuple[type[_Mapped], tuple[Path, str]]:
        return _Mapped, (self.file, self.sha256)


class IndexEntries(Sequence[IndexEntry]):
    """Rows of a mapped index. An entry is made on access, a slice is a view, and pickling copies no row."""

    def __init__(self, mapped: _Mapped, rows: range, folder: Path) -> None:
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
        return IndexEntry(**(row | {"path": self._folder / row["path"]}))

    def __iter__(self) -> Iterator[IndexEntry]:
        return (self[number] for number in range(len(self)))

    def column(self, name: str) -> Any:
        """Return a column of these rows: a NumPy array of numbers or booleans, a pyarrow array (`large_string`) of strings.

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
        if pa.types.is_large_string(values.type):
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
        self.sha256 = _sha256(self.path)
        mapped = _map(self.path, self.sha256)
        self.splits = sorted(mapped.slices)
        if split not in mapped.slices:
            found = ", ".join(self.splits) or "none, the index is empty"
            message = f'{self.path}: nothing in split "{split}" (splits found: {found})'
            if split == "val":
                again = f"python -m walt_pl index SOURCE --out {self.path} --val 0.02"
                message += f"; index again with --val 0.02 ({again}), or set --data.val_videos 0"
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
        if set(_DEFAULTS | dict(entry)) != set(SCHEMA.names):
            wanted, found = ", ".join(SCHEMA.names), ", ".join(sorted(entry))
            raise ValueError(f"{path}: entry {number}: wanted the columns {wanted}, found {found}")
    try:
        table = pa.Table.from_pylist([_DEFAULTS | dict(entry) for entry in entries], schema=_LARGE)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: a column has a wrong type: {error}") from error
    write_table(table, path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write an index from a table with the columns of `SCHEMA`, whole or not at all: `path` and the Arrow file beside it.

    Raises:
        ValueError: As in `write_index`.
    """
    table, slices = _sort_rows(_conform(table, path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        # Without Arrow's own schema: it would declare the strings as large.
        pq.write_table(table, file, store_schema=False)
    _write_arrow(table, slices, _sha256(path), path.with_suffix(".arrow"))


def class_names(path: Path) -> list[str]:
    """Return the names of the classes of an index by label: the lines of NAME.classes.txt. Empty where there is no such file."""
    names = path.with_suffix(".classes.txt")
    return names.read_text(encoding="utf-8").splitlines() if names.exists() else []


def media_keys(table: pa.Table) -> list[MediaKey]:
    """Return the media key of each row, in order."""
    return list(map(MediaKey, *(table[name].to_pylist() for name in MediaKey._fields)))


def read_table(path: Path) -> pa.Table:
    """Return all rows of an index, with the columns of `SCHEMA` (strings as `large_string`).

    Raises:
        ValueError: The file is missing, is no Parquet or lacks columns.
    """
    check_index_file(path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {error}") from error
    return _conform(table, path)


def check_index_file(path: Path) -> None:
    """Refuse an index that does not exist.

    Raises:
        ValueError: with the command that makes it.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: no such index; make it with: python -m walt_pl index SOURCE --out {path} "
            "(the embedded set with: python -m walt_pl index shapes --out data/shapes)"
        )


def _conform(table: pa.Table, path: Path) -> pa.Table:
    """Return the columns of an index, in order, of the right types and without nulls.

    Raises:
        ValueError: A column is missing, has a wrong type or a wrong value.
    """
    missing = [name for name in SCHEMA.names if name not in table.column_names and name not in _DEFAULTS]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)} (found: {', '.join(table.column_names)})")
    columns = [_conform_column(table, field, path) for field in _LARGE]
    table = pa.Table.from_arrays(columns, schema=_LARGE)
    _check(table, pc.is_in(table["kind"], pa.array(KINDS, pa.large_string())), "kind", 'kind must be "video" or "image"', path)
    absolute = pc.match_substring_regex(table["path"], r"^(/|[A-Za-z]:[\\/])")
    _check(table, pc.invert(absolute), "path", "path must be relative to the folder of the index", path)
    begins, ends = table["begin"], table["end"]
    _check(table, pc.and_(pc.is_finite(begins), pc.greater_equal(begins, 0.0)), "begin", "begin must be a second of the file, from 0", path)
    after = pc.and_(pc.is_finite(ends), pc.or_(pc.equal(ends, 0.0), pc.greater(ends, begins)))
    _check(table, after, "end", "end must lie behind begin, or be 0 for the end of the file", path)
    return table


def _conform_column(table: pa.Table, field: pa.Field, path: Path) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(_DEFAULTS[field.name], field.type), table.num_rows)])
    column = table[field.name]
    try:
        column = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: column {field.name} has a wrong type: {error}") from error
    if column.null_count and field.name in _NULLS:
        column = column.fill_null(pa.scalar(_NULLS[field.name], field.type))
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise ValueError(f"{path}: entry {row}: no {field.name}")
    return column


def _check(table: pa.Table, right: pa.ChunkedArray, name: str, wanted: str, path: Path) -> None:
    wrong = pc.index(right, False).as_py()
    if wrong >= 0:
        raise ValueError(f'{path}: entry {wrong}: {wanted}, found "{table[name][wrong]}"')


def _sort_rows(table: pa.Table) -> tuple[pa.Table, dict[str, dict[str, list[int]]]]:
    """Sort the rows by (split, kind), and otherwise keep their order.

    Returns:
        The rows, and the first row and the row after the last of each split and kind.
    """
    splits = sorted(pc.unique(table["split"]).to_pylist())
    numbers = {(split, kind): number for number, (split, kind) in enumerate((s, k) for s in splits for k in KINDS)}
    part = np.zeros(table.num_rows, np.int32)
    for name, values, step in (("split", splits, len(KINDS)), ("kind", list(KINDS), 1)):
        part += pc.index_in(table[name], pa.array(values, pa.large_string())).to_numpy().astype(np.int32) * step
    if (np.diff(part) < 0).any():
        table = table.take(pa.array(np.argsort(part, kind="stable")))
    ends = np.cumsum(np.bincount(part, minlength=len(numbers)))
    slices: dict[str, dict[str, list[int]]] = {split: {} for split in splits}
    for (split, kind), number in numbers.items():
        slices[split][kind] = [int(ends[number - 1]) if number else 0, int(ends[number])]
    return table, slices


def _map(path: Path, sha256: str) -> _Mapped:
    """Map the rows of an index, from the Arrow file beside it or from one that is written now."""
    beside, kept = path.with_suffix(".arrow"), _cache_folder() / f"{sha256}.arrow"
    for file in (beside, kept):
        try:
            return _Mapped(file, sha256)
        except ValueError:  # missing, damaged, or of another Parquet file
            continue
    table, slices = _sort_rows(read_table(path))
    try:
        _write_arrow(table, slices, sha256, beside)
    except OSError:  # the folder may be read-only
        kept.parent.mkdir(parents=True, exist_ok=True)
        _write_arrow(table, slices, sha256, kept)
        return _Mapped(kept, sha256)
    return _Mapped(beside, sha256)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "walt_pl" / "indices"


def _write_arrow(table: pa.Table, slices: Mapping[str, object], sha256: str, path: Path) -> None:
    """Write the rows as one record batch, which can be mapped without a copy at any size."""
    _check_own(path)
    schema = _LARGE.with_metadata({"sha256": sha256, "slices": json.dumps(slices)})
    columns = [table[name].combine_chunks() for name in _LARGE.names]
    # combine_chunks leaves a chunked array where there is no chunk at all, or where one would be too long.
    arrays = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
    with whole_file(path) as file, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _check_own(path: Path) -> None:
    """Refuse to replace an Arrow file that another program wrote. A damaged one may be replaced.

    Raises:
        FileExistsError: There is such a file.
    """
    try:
        metadata = pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata or {}
    except (pa.ArrowInvalid, OSError):
        return
    if not {b"sha256", b"slices"} <= metadata.keys():
        raise FileExistsError(errno.EEXIST, "a file of another program, move it away or name the index otherwise (--out)", str(path))


def _sha256(path: Path) -> str:
    check_index_file(path)
    return file_sha256(path, fresh=True)
