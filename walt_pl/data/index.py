"""The data index: one Parquet file that lists every clip and image of a data set.

Columns: `path` (relative to the index's folder, forward slashes), `kind` ("video" or "image"), `frames`, `fps`,
`width`, `height`, `caption`, `label` (-1: none), `split` and `bytes`; and with defaults, see `Entry`: `duration`, `decoder`,
`offset`, `modified`, `variable_rate`. The same rows give the same bytes, so that the SHA-256 of the index can stand for the data in
caches and artifacts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    ]
)
# What a row may leave out.
_DEFAULTS: dict[str, object] = {"duration": 0.0, "decoder": "", "offset": -1, "modified": 0, "variable_rate": False}
KINDS = ("video", "image")


@dataclass(frozen=True)
class Entry:
    """One clip or image of the index."""

    path: Path
    """Absolute path of the file."""
    kind: str
    """"video" or "image"."""
    frames: int
    """Frames in the file, 1 for an image."""
    fps: float
    """Frames per second, 0 for an image."""
    width: int
    """Columns of pixels."""
    height: int
    """Rows of pixels."""
    caption: str
    """What it shows, "" where nobody said."""
    label: int
    """Class number, -1 where there is none."""
    split: str
    """Part of the data set: train, val, ..."""
    bytes: int
    """Size of the file (or of the member of a tar shard) when it was indexed."""
    duration: float = 0.0
    """Seconds from the first frame to the end of the last one; 0 for an image, and where nobody measured."""
    decoder: str = ""
    """"decord", "pyav" or "pillow": what reads this file rightly. Empty: not examined."""
    offset: int = -1
    """Where the member's bytes begin in the tar shard `path`; -1: `path` is the file itself."""
    modified: int = 0
    """When the file (or the shard) was last changed, in nanoseconds since 1970; 0: nobody noted."""
    variable_rate: bool = False
    """Whether the frames are not evenly spaced in time."""


class Entries(Sequence[Entry]):
    """Rows of the index, read from the Parquet table one at a time: a million clips cost no million Python objects."""

    def __init__(self, table: pa.Table, folder: Path) -> None:
        self._table = table.combine_chunks()
        self._folder = folder

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, number: int) -> Entry: ...

    @overload
    def __getitem__(self, number: slice) -> Entries: ...

    def __getitem__(self, number: int | slice) -> Entry | Entries:
        """The entry at `number`, or the entries of a slice. Raises IndexError past either end."""
        if isinstance(number, slice):
            return Entries(self._table.take(pa.array(range(*number.indices(len(self))), pa.int64())), self._folder)
        if not -len(self) <= number < len(self):
            raise IndexError(f"entry {number} of an index with {len(self)}")
        row = {name: self._table.column(name)[number % len(self)].as_py() for name in SCHEMA.names}
        return Entry(**(row | {"path": self._folder / row["path"]}))

    def __iter__(self) -> Iterator[Entry]:
        return (self[number] for number in range(len(self)))


class Index:
    """One split of a data index.

    `videos` and `images` hold its entries in the order of the file, `sha256` is the hash of the whole file.

    Raises ValueError where the file is missing, is no Parquet, lacks columns, or has nothing in `split`.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path).absolute()
        self.split = split
        table = _read(self.path)
        rows = table.filter(pc.equal(table["split"], split))
        if not rows.num_rows:
            found = ", ".join(sorted(table["split"].unique().to_pylist())) or "none, the index is empty"
            raise ValueError(f'{self.path}: nothing in split "{split}" (splits found: {found})')
        self.videos = Entries(rows.filter(pc.equal(rows["kind"], "video")), self.path.parent)
        self.images = Entries(rows.filter(pc.equal(rows["kind"], "image")), self.path.parent)
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()


def write_index(entries: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write the index whole or not at all.

    `entries` are rows with the columns of `SCHEMA`; `path` in them is relative to the folder of the index.

    Raises ValueError for a row that lacks a column, has another one, a wrong type, an unknown kind or an absolute path.
    """
    for number, entry in enumerate(entries):
        _check(entry, f"{path}: entry {number}")
    try:
        table = pa.Table.from_pylist([_DEFAULTS | dict(entry) for entry in entries], schema=SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: a column has a wrong type: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(entry: Mapping[str, object], where: str) -> None:
    if set(_DEFAULTS | dict(entry)) != set(SCHEMA.names):
        raise ValueError(f"{where}: wanted the columns {', '.join(SCHEMA.names)}, found {', '.join(sorted(entry))}")
    if entry["kind"] not in KINDS:
        raise ValueError(f'{where}: kind must be "video" or "image", found "{entry["kind"]}"')
    if Path(str(entry["path"])).is_absolute():
        raise ValueError(f'{where}: path must be relative to the folder of the index, found "{entry["path"]}"')


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path}: no such index; make it with: python -m walt_pl index shapes --out data/shapes")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {error}") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)} (found: {', '.join(table.column_names)})")
    return table.select(SCHEMA.names)
