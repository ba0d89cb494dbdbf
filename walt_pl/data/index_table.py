"""Rows of an index as a table: their columns, the checks of every value, and reading them from Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from walt_pl.data.caption_values import MAX_CAPTIONS
from walt_pl.data.index_sums import checked_sha256

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
        ("interlaced", pa.bool_()),
        ("hdr", pa.bool_()),
        ("more_captions", pa.list_(pa.field("element", pa.string()))),
    ]
)
# In memory and in the Arrow file: the captions of ten million clips are more than the 2 GiB that `string` can address.
_LARGE_TYPES = {pa.string(): pa.large_string(), SCHEMA.field("more_captions").type: pa.large_list(pa.large_string())}
LARGE = pa.schema([(field.name, _LARGE_TYPES.get(field.type, field.type)) for field in SCHEMA])
# Columns that a row may leave out.
DEFAULTS: dict[str, object] = {
    "duration": 0.0,
    "decoder": "",
    "offset": -1,
    "modified": 0,
    "variable_rate": False,
    "begin": 0.0,
    "end": 0.0,
    "interlaced": False,
    "hdr": False,
    "more_captions": [],
}
# Smallest values.
_LEAST = {"frames": 0, "fps": 0, "width": 0, "height": 0, "duration": 0, "bytes": -1, "offset": -1}
# Values in place of nulls, which other programs write into Parquet files.
_NULLS = {**DEFAULTS, "caption": "", "label": -1}
KINDS = ("video", "image")
MAX_ROWS = 1 << 28
"""Rows of an index."""


def read_table(path: Path) -> pa.Table:
    """Return all rows of an index, with the columns of `SCHEMA` (strings as `large_string`).

    Raises:
        ValueError: The file is missing, damaged, is no Parquet or lacks columns.
    """
    check_index_file(path)
    checked_sha256(path)
    return read_parquet(path)


def read_parquet(path: Path) -> pa.Table:
    """Return all rows of a Parquet file whose hash is checked or not known. Its pages may have checksums, which are compared.

    Raises:
        ValueError: The file is damaged, is no Parquet, lacks columns, or has impossible values.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{file.metadata.num_rows:,} rows, at most {MAX_ROWS:,} wanted")
            table = file.read([name for name in file.schema_arrow.names if name in SCHEMA.names])
            table.validate(full=True)
            found = file.schema_arrow.names
    # pyarrow's own errors; those of its wrappers on names and numbers that are not what they should be; too little memory
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())[:300]}; "
            f"remove it, and make it again: python -m walt_pl index SOURCE --out {path}"
        ) from error
    return conform(table, path, found)


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


def conform(table: pa.Table, path: Path, found: Sequence[str] = ()) -> pa.Table:
    """Return the columns of an index, in order, of the right types and without nulls.

    Args:
        table: Columns of the file.
        path: The file, for the error message.
        found: Names of all columns of the file; those of `table` where empty.

    Raises:
        ValueError: A column is missing, has a wrong type or a wrong value.
    """
    missing = [name for name in SCHEMA.names if name not in table.column_names and name not in DEFAULTS]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)} (found: {', '.join(found or table.column_names)})")
    if twice := [name for name in SCHEMA.names if table.column_names.count(name) > 1]:
        raise ValueError(f"{path}: column {twice[0]} is there more than once, wanted once")
    columns = [_conform_column(table, field, path) for field in LARGE]
    table = pa.Table.from_arrays(columns, schema=LARGE)
    check_values(table, path)
    return table


def check_values(table: pa.Table | pa.RecordBatch, path: Path) -> None:
    """Check the values of all rows.

    Raises:
        ValueError: A value is impossible. The message names the first row.
    """
    _check(table, pc.is_in(table["kind"], pa.array(KINDS, pa.large_string())), "kind", 'kind must be "video" or "image"', path)
    paths = table["path"]
    absolute = pc.or_(pc.or_(pc.equal(pc.binary_length(paths), 0), pc.starts_with(paths, "/")), pc.match_substring(paths, "\0"))
    if pc.any(pc.match_substring(paths, ":")).as_py():
        absolute = pc.or_(absolute, pc.match_substring_regex(paths, r"^[A-Za-z]:[\\/]"))
    _check(table, pc.invert(absolute), "path", "path must be relative to the folder of the index", path)
    for name, least in _LEAST.items():
        right = pc.and_(pc.is_finite(table[name]), pc.greater_equal(table[name], least))
        _check(table, right, name, f"{name} must be a number from {least}", path)
    begins, ends = table["begin"], table["end"]
    _check(table, pc.and_(pc.is_finite(begins), pc.greater_equal(begins, 0.0)), "begin", "begin must be a second of the file, from 0", path)
    after = pc.and_(pc.is_finite(ends), pc.or_(pc.equal(ends, 0.0), pc.greater(ends, begins)))
    _check(table, after, "end", "end must lie behind begin, or be 0 for the end of the file", path)
    _check_captions(table, path)


def _conform_column(table: pa.Table, field: pa.Field, path: Path) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(DEFAULTS[field.name], field.type), table.num_rows)])
    column = table[field.name]
    try:
        column = column.cast(field.type)
    except pa.ArrowException as error:  # each kind of wrong value has an error of its own
        raise ValueError(f"{path}: column {field.name} has a wrong type: {error}") from error
    if column.null_count and field.name in _NULLS:
        column = column.fill_null(pa.scalar(_NULLS[field.name], field.type))
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise ValueError(f"{path}: entry {row}: no {field.name}")
    return column


def _check_captions(table: pa.Table | pa.RecordBatch, path: Path) -> None:
    more = table["more_captions"]
    counts, texts = pc.list_value_length(more), pc.list_flatten(more)
    _check(table, pc.less(counts, MAX_CAPTIONS), "more_captions", f"a clip has at most {MAX_CAPTIONS:,} captions", path)
    if texts.null_count or pc.any(pc.equal(texts, "")).as_py():
        right = pa.array([all(row) for row in more.to_pylist()])
        _check(table, right, "more_captions", "more_captions must be texts, none of them empty", path)
    first = pc.or_(pc.equal(counts, 0), pc.not_equal(table["caption"], ""))
    _check(table, first, "more_captions", "more_captions are those beside caption, which is empty", path)


def _check(table: pa.Table | pa.RecordBatch, right: pa.ChunkedArray, name: str, wanted: str, path: Path) -> None:
    wrong = pc.index(right, False).as_py()
    if wrong >= 0:
        raise ValueError(f'{path}: entry {wrong}: {wanted}, found "{str(table[name][wrong])[:200]}"')


def sort_rows(table: pa.Table) -> tuple[pa.Table, dict[str, dict[str, list[int]]]]:
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
