"""The Arrow file of an index: write it, check it once, and map it into memory.

An Arrow file may come from a stranger, with wrong offsets that would crash a process, and a disk may flip a bit of it. The process that
opens an index compares its hash and checks every row. Workers map the file that their parent has checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from walt_pl.data.index_sums import Sums, check_own_sums, checked_sha256, read_sums, write_sums
from walt_pl.data.index_table import KINDS, LARGE, check_index_file, check_values, read_parquet, sort_rows
from walt_pl.files import file_sha256, whole_file
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.untrusted import parse_json

_last: dict[str, Any] = {}
"""The Arrow file that this process has checked last."""


class _DamagedError(ValueError):
    """An Arrow file is not as it was written, or has impossible rows."""


class MappedRows:
    """The Arrow file of an index, mapped into memory. It pickles as its path, and unpickling maps the file again.

    Args:
        file: The Arrow file.
        sha256: Hash of the Parquet file that it was made of.
        written: Hash of the Arrow file itself: compare it, and check every row. A worker leaves it out, since its parent has done so.

    Raises:
        ValueError: The file is damaged, or belongs to another index than `sha256` says.
    """

    def __init__(self, file: Path, sha256: str, written: str | None = None) -> None:
        self.file = file
        self.sha256 = sha256
        try:
            mapped = pa.memory_map(str(file))
            if written is not None and hashlib.sha256(mapped.read_buffer()).hexdigest() != written:
                raise _DamagedError(f"{file} is not as it was written (SHA-256)")
            reader = pa.ipc.open_file(mapped)
            metadata = reader.schema.metadata or {}
            same = metadata.get(b"sha256") == sha256.encode() and reader.schema.equals(LARGE)
            rows = reader.get_batch(0) if same and reader.num_record_batches == 1 else None
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not an Arrow file that can be mapped: {error}") from error
        if rows is None:
            raise ValueError(f"{file}: not the rows of the index {sha256[:12]}...; was the index written again meanwhile? Start anew")
        self.rows: pa.RecordBatch = rows
        self.slices = _read_slices(metadata.get(b"slices", b""), rows.num_rows, file)
        if written is not None:
            _check_rows(self.rows, self.slices, file)

    def __reduce__(self) -> tuple[type[MappedRows], tuple[Path, str]]:
        return MappedRows, (self.file, self.sha256)


def check_index(path: Path) -> str:
    """Check an index as a start does, and write its Arrow file and its hashes where they are missing. Return its SHA-256.

    The caller holds the lock of the index.

    Raises:
        ValueError: As in `Index`.
    """
    return _map_locked(path.absolute()).sha256


def map_rows(path: Path) -> MappedRows:
    """Map the rows of an index, from the Arrow file beside it or from one that is written now.

    Raises:
        ValueError: The index is missing, damaged, is no Parquet, or lacks columns.
    """
    check_index_file(path)
    with contextlib.suppress(ValueError):  # it may be replaced just now; what is wrong is told under the lock
        if mapped := _map_written(path, checked_sha256(path))[0]:
            return mapped
    with contextlib.ExitStack() as held:
        if os.access(path.parent, os.W_OK):
            with contextlib.suppress(OSError):  # the disk may be full: the Arrow file goes into the user's cache
                held.enter_context(hold_lock(lock_beside(path), work=f"index {path}"))
        return _map_locked(path)


def _map_locked(path: Path) -> MappedRows:
    check_index_file(path)
    sha256 = checked_sha256(path)
    mapped, damage = _map_written(path, sha256)
    if mapped:
        return mapped
    if damage:
        warnings.warn(f"{damage}: it is made again from the Parquet file", stacklevel=4)
    table, slices = sort_rows(read_parquet(path))
    if file_sha256(path, fresh=True) != sha256:  # in a folder that this user cannot write there is no lock
        raise ValueError(f"{path} was written again while it was read: start anew")
    beside, kept = path.with_suffix(".arrow"), _kept_file(sha256)
    try:
        return MappedRows(beside, sha256, write_arrow(table, slices, sha256, beside, path))
    except OSError:  # the folder may be read-only
        kept.parent.mkdir(parents=True, exist_ok=True)
        return MappedRows(kept, sha256, write_arrow(table, slices, sha256, kept, kept))


def _map_written(path: Path, sha256: str) -> tuple[MappedRows | None, str]:
    """Map the Arrow file beside an index or the one in the user's cache.

    Returns:
        The rows, or None if the file must be made anew: it is missing, damaged, of unknown hash or of another Parquet file. And the damage.
    """
    kept, damage = _kept_file(sha256), ""
    for file, of in ((path.with_suffix(".arrow"), path), (kept, kept)):
        written = read_sums(of).arrow
        if not written or not file.is_file():
            continue
        try:
            return _checked_once(file, sha256, written), ""
        except _DamagedError as error:
            damage = str(error)
        except ValueError:  # of another Parquet file, or of an older version
            pass
    return None, damage


def _checked_once(file: Path, sha256: str, written: str) -> MappedRows:
    """Map and check an Arrow file. The splits of an index share it, and it is checked for the first of them."""
    status = file.stat()
    key = (str(file), sha256, written, status.st_ino, status.st_size, status.st_mtime_ns)
    if _last.get("key") == key:
        found: MappedRows = _last["rows"]
        return found
    mapped = MappedRows(file, sha256, written)
    _last.clear()
    # Clocks of file systems have a resolution of up to 2 s: a file changed just now may change again without a new time.
    if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
        _last.update(key=key, rows=mapped)
    return mapped


def _read_slices(text: bytes, rows: int, file: Path) -> dict[str, dict[str, list[int]]]:
    """Return the first row and the row after the last of each split and kind.

    Raises:
        ValueError: They are no such numbers.
    """
    slices = parse_json(text, f"{file}: its slices")
    whole = isinstance(slices, dict) and all(isinstance(of_split, dict) and set(of_split) == set(KINDS) for of_split in slices.values())
    parts = [part for of_split in slices.values() for part in of_split.values()] if whole else []
    pairs = whole and all(isinstance(part, list) and [type(number) for number in part] == [int, int] for part in parts)
    if not pairs or not all(0 <= first <= end <= rows for first, end in parts):
        raise _DamagedError(f"{file}: its slices are no numbers of its rows")
    found: dict[str, dict[str, list[int]]] = slices
    return found


def _check_rows(rows: pa.RecordBatch, slices: Mapping[str, object], file: Path) -> None:
    """Check every byte and value of mapped rows: an Arrow file may come from a stranger, and wrong offsets would crash a process.

    Raises:
        ValueError: The rows are not those of an index.
    """
    try:
        rows.validate(full=True)
        if nulls := [name for name in rows.schema.names if rows[name].null_count]:
            raise _DamagedError(f"{file}: no {nulls[0]} in a row")
        check_values(rows, file)
        if sort_rows(pa.Table.from_batches([rows]))[1] != slices:
            raise _DamagedError(f"{file}: its slices are not those of its rows")
    except (pa.ArrowException, ValueError) as error:
        raise _DamagedError(str(error)) from error


def _kept_file(sha256: str) -> Path:
    """Return the Arrow file of an index in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "walt_pl" / "indices" / f"{sha256}.arrow"


def write_arrow(table: pa.Table, slices: Mapping[str, object], sha256: str, file: Path, path: Path) -> str:
    """Write the rows as one record batch, which can be mapped without a copy at any size, and the hashes of the index.

    Args:
        table: The rows.
        slices: First row and row after the last of each split and kind.
        sha256: Hash of the Parquet file.
        file: The Arrow file.
        path: The index that the hashes lie beside.

    Returns:
        The hash of the Arrow file.
    """
    check_own_sums(path)
    _check_own(file, path)
    schema = LARGE.with_metadata({"sha256": sha256, "slices": json.dumps(slices)})
    columns = [table[name].combine_chunks() for name in LARGE.names]
    # combine_chunks leaves a chunked array where there is no chunk at all, or where one would be too long.
    arrays = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
    with whole_file(file) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        written = file_sha256(temporary, fresh=True)
    write_sums(path, Sums((sha256,), written))
    return written


def _check_own(file: Path, path: Path) -> None:
    """Refuse to replace an Arrow file that another program wrote. A damaged one, or one that the hashes of the index list, may be replaced.

    Raises:
        FileExistsError: There is such a file.
    """
    if read_sums(path).arrow:
        return
    try:
        metadata = pa.ipc.open_file(pa.memory_map(str(file))).schema.metadata or {}
    except (pa.ArrowException, OSError):
        return
    if not {b"sha256", b"slices"} <= metadata.keys():
        raise FileExistsError(errno.EEXIST, "a file of another program, move it away or name the index otherwise (--out)", str(file))
