"""Index pieces of files, and take none for another."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.clips import film, numbers
from walt_pl.data.index import Index, MediaKey, write_index
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.selection import QUARANTINED, SHORT, USED, Bucket, select
from walt_pl.data.transforms import ClipTransform
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import BuildReport, IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.doctor import diagnose, write_report
from walt_pl.indexing.probe_file import MediaFacts, MediaFile
from walt_pl.media.reading import read_clip
from walt_pl.media.spans import FrameRange


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[MediaFile]:
    """Examines in this process, which is faster, and notes what."""
    seen: list[MediaFile] = []

    def run(
        function: Callable[[MediaFile], list[MediaFacts]], media: list[MediaFile], *rest: object
    ) -> Iterator[tuple[MediaFile, list[MediaFacts]]]:
        for medium in media:
            seen.append(medium)
            yield medium, function(medium)

    monkeypatch.setattr(building, "run_isolated", run)
    return seen


def build(folder: Path, text: str, again: bool = False) -> BuildReport:
    (folder / "list.csv").write_text(text)
    return build_index(list_source(str(folder / "list.csv")), folder / "i.parquet", IndexOptions(again))


def test_build_index_makes_a_row_for_each_piece_of_a_file(tmp_path: Path, jobs: list[MediaFile]) -> None:
    film(tmp_path / "film.mp4")
    built = build(
        tmp_path,
        "path,begin,end,duration,split,caption\n"
        "film.mp4,0:00:00.000,0:00:02.500,6,train,one\n"
        "film.mp4,2.5,,1.5,val,two\n"
        "film.mp4,00:04,,,val,three\n"
        "film.mp4,,,6,test,all\n",
    )
    assert (built.rows, built.examined, len(jobs)) == (4, 1, 1), "a file is decoded once for all of its pieces"
    train, val, test = (Index(tmp_path / "i.parquet", split).videos for split in ("train", "val", "test"))
    rows = [(e.caption, e.begin, e.end, e.frames, round(e.duration, 6), e.fps) for e in (*train, *val, *test)]
    assert rows == [
        ("one", 0.0, 2.5, 25, 2.5, 10.0),
        ("two", 2.5, 4.0, 15, 1.5, 10.0),
        ("three", 4.0, 0.0, 20, 2.0, 10.0),
        ("all", 0.0, 0.0, 60, 6.0, 10.0),
    ]
    assert [numbers(read_clip(entry, FrameRange(2))) for entry in (*train, *val, *test)] == [[0, 1], [25, 26], [40, 41], [0, 1]]
    assert str(val[0].place) == f"{tmp_path}/film.mp4, from second 2.5 to 4"
    (selection,) = select({"video": val}, ClipTransform(64, frames=17), [Bucket(64, 64)], {"video": np.array([], np.int64)}).values()
    assert selection.reason.tolist() == [SHORT, USED], "long enough is what the piece has"


def test_list_source_reads_the_begin_and_duration_of_pieces_from_jsonl(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a.mp4", "begin": 1, "duration": 0.5}) + "\n")
    (item,) = list_source(str(tmp_path / "list.jsonl")).items
    assert (item.begin, item.end) == (1.0, 1.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,2,1,", r"list\.csv:2: a piece ends behind its beginning, found 2 to 1 s"),
        ("a.mp4,2,,0", "found 2 to 2 s"),
        ("a.mp4,-2,3,", 'wanted seconds like 62.5, or 0:01:02.5, found "-2"'),
        ("a.mp4,2,soon,", 'found "soon"'),
        ("a.png,2,3,", "a piece of a video, and this is an image"),
    ],
)
def test_list_source_names_wrong_pieces(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(f"path,begin,end,duration\n{row}\n")
    with pytest.raises(ValueError, match=message):
        list_source(str(tmp_path / "list.csv"))


def test_write_index_refuses_an_impossible_piece(tmp_path: Path) -> None:
    same = {"kind": "video", "frames": 17, "fps": 8.0, "width": 8, "height": 8, "caption": "", "label": -1, "split": "train", "bytes": 9}
    for begin, end, message in (
        (-1.0, 0.0, "begin must be"),
        (float("nan"), 0.0, "begin must be"),
        (3.0, 3.0, "end must lie behind begin"),
    ):
        with pytest.raises(ValueError, match=f"entry 0: {message}"):
            write_index([{**same, "path": "a.mp4", "begin": begin, "end": end}], tmp_path / "i.parquet")


def test_build_index_examines_only_new_pieces_and_resumes_after_an_interrupt(
    tmp_path: Path, jobs: list[MediaFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "film.mp4")
    film(tmp_path / "other.mp4", 30)
    head, first, more = "path,begin,end\n", "film.mp4,0,2\nfilm.mp4,2,4\n", "film.mp4,4,6\nother.mp4,0,2\n"
    build(tmp_path, head + first)
    assert (build(tmp_path, head + first).examined, len(jobs)) == (0, 1)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, head + first + more)
    assert [medium.pieces for medium in jobs[1:]] == [((4.0, 6.0),), ((0.0, 2.0),)]
    built = build(tmp_path, head + first + more)
    assert (built.rows, built.added, len(jobs)) == (4, 2, 3), "what was examined before the interruption is known"
    places = [(entry.begin, entry.end, entry.frames) for entry in Index(tmp_path / "i.parquet", "train").videos]
    assert places == [(0.0, 2.0, 20), (2.0, 4.0, 20), (4.0, 6.0, 20), (0.0, 2.0, 20)]
    first_bytes = (tmp_path / "i.parquet").read_bytes()
    assert build(tmp_path, head + more + first, again=True).examined == 2
    assert (tmp_path / "i.parquet").read_bytes() == first_bytes


def test_quarantine_tells_pieces_of_a_file_apart(tmp_path: Path, jobs: list[MediaFile]) -> None:
    film(tmp_path / "film.mp4")
    text = "path,begin,end\nfilm.mp4,0,2\nfilm.mp4,2,4\nfilm.mp4,5,7\nfilm.mp4,7,9\n"
    built = build(tmp_path, text)
    quarantine = Quarantine.beside(tmp_path / "i.parquet")
    beyond = MediaKey("film.mp4", -1, 7.0, 9.0)
    assert quarantine.reasons == {beyond: "truncated: no frame from 7 to 9 s: the file has 6.00 s"} and built.quarantined == 1
    quarantine.add(MediaKey("film.mp4", -1, 2.0, 4.0), "a logo")
    quarantine.write()
    entries = Index(tmp_path / "i.parquet", "train").videos
    (selection,) = select({"video": entries}, ClipTransform(64), [Bucket(64, 64)], {"video": quarantine.positions(entries)}).values()
    assert selection.reason.tolist() == [USED, QUARANTINED, SHORT, QUARANTINED]
    (tmp_path / "film.mp4").write_bytes(b"words " * 99)
    assert build(tmp_path, text).quarantined == 4
    film(tmp_path / "film.mp4")
    build(tmp_path, text)
    assert list(Quarantine.beside(tmp_path / "i.parquet").reasons) == [MediaKey("film.mp4", -1, 2.0, 4.0), beyond]


def test_diagnose_calls_equal_pieces_of_equal_bytes_duplicates(
    tmp_path: Path, jobs: list[MediaFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(film(tmp_path / "a.mp4"), tmp_path / "b.mp4")
    build(
        tmp_path,
        "path,begin,end,split\na.mp4,0,2,val\na.mp4,2,4,train\na.mp4,4,6,train\nb.mp4,0,2,train\nb.mp4,2.0,4,train\nb.mp4,3,5,train\n",
    )
    monkeypatch.setattr("walt_pl.indexing.doctor.run_isolated", building.run_isolated)
    findings = diagnose(tmp_path / "i.parquet", IndexOptions(), {})
    copies = {finding.place: finding.detail for finding in findings if finding.finding == "duplicate"}
    assert copies == {
        MediaKey("b.mp4", -1, 0.0, 2.0): "the same bytes as a.mp4, from second 0 to 2",
        MediaKey("b.mp4", -1, 2.0, 4.0): "the same bytes as a.mp4, from second 2 to 4",
    }
    report = list(csv.DictReader(write_report(findings, tmp_path / "i.parquet").open()))
    assert {(row["path"], row["begin"], row["end"]) for row in report if row["finding"] == "duplicate"} == {
        ("b.mp4", "0.0", "2.0"),
        ("b.mp4", "2.0", "4.0"),
    }
