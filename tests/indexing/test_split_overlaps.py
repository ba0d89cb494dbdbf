"""Seconds of a film that are in two splits are pointed out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sources import touch
from walt_pl.data.index_table import SCHEMA
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.probe_file import MediaFacts
from walt_pl.indexing.split_overlaps import note_overlaps

Row = tuple[str, int, float, float, str]


def note(*rows: Row) -> str:
    names = ("path", "offset", "begin", "end", "split")
    filled = [dict.fromkeys(SCHEMA.names) | dict(zip(names, row, strict=True)) for row in rows]
    return "".join(note_overlaps(SCHEMA.empty_table().from_pylist(filled, SCHEMA)))


@pytest.mark.parametrize(
    "rows",
    [
        [("a.mp4", -1, 0, 0, "train"), ("a.mp4", -1, 0, 0, "val")],
        [("a.mp4", -1, 0, 2, "train"), ("a.mp4", -1, 0, 0, "val")],
        [("a.mp4", -1, 5, 0, "train"), ("a.mp4", -1, 6, 7, "val")],
        [("a.tar", 512, 1, 3, "train"), ("a.tar", 512, 2.9, 4, "val")],
        [("a.mp4", -1, 0, 9, "val"), ("a.mp4", -1, 1, 2, "val"), ("a.mp4", -1, 8, 10, "test")],
    ],
)
def test_note_overlaps_counts_rows_that_share_seconds_across_splits(rows: list[Row]) -> None:
    assert note(*rows).startswith(f"seconds of a file in several splits: 2 rows, the first: {rows[0][0]}")


@pytest.mark.parametrize(
    "rows",
    [
        [("a.mp4", -1, 0, 0, "train"), ("a.mp4", -1, 0, 2, "train"), ("b.mp4", -1, 0, 0, "val")],
        [("a.mp4", -1, 0, 2, "train"), ("a.mp4", -1, 2, 0, "val")],
        [("a.tar", 512, 0, 0, "train"), ("a.tar", 9216, 0, 0, "val")],
    ],
)
def test_note_overlaps_is_silent_where_splits_share_no_second(rows: list[Row]) -> None:
    assert note(*rows) == ""


def test_build_index_notes_seconds_of_a_film_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(function: object, jobs: list[building.MediaFile], *rest: object) -> object:
        return ((job, [MediaFacts(job.bytes, job.modified, 9) for _ in job.pieces]) for job in jobs)

    monkeypatch.setattr(building, "run_isolated", examine)
    touch(tmp_path, "v0.mp4")
    table, out = tmp_path / "list.csv", tmp_path / "i.parquet"

    def build(text: str) -> list[str]:
        table.write_text(text)
        return build_index(list_source(str(table)), out, IndexOptions()).notes

    assert build("path,begin,end,split\nv0.mp4,0,2,train\nv0.mp4,2,4,val\n") == []
    (told,) = build("path,split\nv0.mp4,val\n")
    assert "3 rows" not in told and "2 rows, the first: v0.mp4 (val) and v0.mp4, from second 0 to 2 (train);" in told
    out.unlink()
    (told,) = build("path,split\nv0.mp4,train\nv0.mp4,val\n")
    assert "2 rows, the first: v0.mp4 (train) and v0.mp4 (val); keep them in one split unless you mean it" in told
