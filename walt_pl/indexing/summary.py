"""Summary of an index for a terminal: its videos, stills and images, by split and by folder, counted from the rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from walt_pl.data.index import media_keys
from walt_pl.data.index_table import read_table
from walt_pl.data.quarantine import Quarantine
from walt_pl.indexing.listing import SPLITS
from walt_pl.terminal_text import printable

_MOST = 8
"""Most folders that are told apart."""
COLUMNS = ("videos", "stills", "images", "with caption", "with label", "not used")
_NOTES = {
    "stills": "videos of one frame",
    "not used": "in the quarantine list; its rows are among the others",
}


def count_rows(index: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Count the rows of an index: {"split" or "folder": {name: {column of the summary: rows}}}.

    Raises:
        ValueError: The index or its quarantine list cannot be read.
    """
    table = read_table(index)
    video = pc.equal(table["kind"], "video")
    still = pc.and_(video, pc.equal(table["frames"], 1))
    masks = {
        "videos": pc.and_(video, pc.invert(still)),
        "stills": still,
        "images": pc.invert(video),
        "with caption": pc.not_equal(table["caption"], ""),
        "with label": pc.greater_equal(table["label"], 0),
        "not used": find_unused(table, Quarantine.beside(index)),
    }
    parts = {"split": table["split"], "folder": _folders(table)}
    return {part: _count(names, masks) for part, names in parts.items()}


def _count(names: pa.ChunkedArray | pa.Array, masks: Mapping[str, pa.ChunkedArray | pa.Array]) -> dict[str, dict[str, int]]:
    columns = [pc.cast(mask, pa.int64()) for mask in masks.values()]
    counted = pa.table([names, *columns], names=["name", *masks]).group_by("name").aggregate([(name, "sum") for name in masks])
    found = {row["name"]: {name: row[f"{name}_sum"] for name in masks} for row in counted.to_pylist()}
    return dict(sorted(found.items()))


def find_unused(table: pa.Table, quarantine: Quarantine) -> pa.Array:
    """Return for each row of an index whether the quarantine list has its file or piece."""
    listed = np.zeros(table.num_rows, bool)
    paths = pa.array(sorted({place.path for place in quarantine.reasons}), pa.large_string())
    rows = pc.indices_nonzero(pc.is_in(table["path"], paths)).to_numpy().astype(np.int64)
    listed[rows] = [quarantine.reason(place) is not None for place in media_keys(table.take(pa.array(rows)))]
    return pa.array(listed)


def _folders(table: pa.Table) -> pa.ChunkedArray:
    """Return the folder of each row that stands for its source, see `group_folders`."""
    inner = pc.replace_substring_regex(table["path"], r"/?[^/]*$", "")
    known = pc.unique(inner).to_pylist()
    names = dict(zip(known, group_folders(known), strict=True))
    return pc.take(pa.array([names[name] for name in known], pa.large_string()), pc.index_in(inner, pa.array(known, pa.large_string())))


def group_folders(folders: Sequence[str]) -> list[str]:
    """Return for each folder of files the one that stands for its source. An index may hold rows of several sources.

    The folders part at the first level at which they differ. Below it, each is as deep as holds all of its files. Folders of splits are
    not told apart, nor are more than eight, nor those of a folder that has files of its own.
    """
    if not folders:
        return []
    top = _common(folders)
    branches = [_below(folder, top) for folder in folders]
    members: dict[str, list[str]] = {name: [] for name in branches}
    for name, folder in zip(branches, folders, strict=True):
        members[name].append(folder)
    own_files = "" in members and top.rpartition("/")[2] not in ("", "..")
    if own_files or len(members) > _MOST or all(name.lower() in SPLITS for name in members):
        return [top or "."] * len(folders)
    shared = {name: _common(inside) or "." for name, inside in members.items()}
    return [shared[name] for name in branches]


def _common(folders: Iterable[str]) -> str:
    return os.path.commonpath(list(folders))


def _below(folder: str, top: str) -> str:
    """Return the first folder below `top` on the way to a folder; "" for `top` itself."""
    return folder.removeprefix(top).removeprefix("/").split("/")[0]


def render_summary(index: Path) -> RenderableType:
    """Render the counts of an index as a table: by split, and by folder if there are several."""
    counts = count_rows(index)
    total = {name: sum(row[name] for row in counts["split"].values()) for name in COLUMNS}
    table = Table("", *COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for part, rows in counts.items():
        if part == "split" or len(rows) > 1:
            for name, row in rows.items():
                table.add_row(Text(printable(f"{part} {name}")), *(f"{row[column]:,}" for column in COLUMNS))
            table.add_section()
    if len(counts["split"]) > 1:
        table.add_row("all", *(f"{count:,}" for count in total.values()))
    return Group(table, *(Text(f"{name}: {words}") for name, words in _NOTES.items() if total[name]))
