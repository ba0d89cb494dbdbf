"""Pieces of files: which frames they have, and that nothing takes one for another."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.clips import CASES, FRAMES, RATE, UNEVEN, Case, counting_clip, entry_of, numbers
from walt_pl.data.batch import Draw
from walt_pl.data.index import Entry, Index, Place, write_index
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.selection import QUARANTINED, SHORT, USED, Bucket, select
from walt_pl.data.transforms import Framing, PixelDataset
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import Built, Options, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.doctor import diagnose, write_report
from walt_pl.indexing.probe_file import Facts, Medium
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.media.video import Frames, MediaError, Probe, Span, probe, read_clip, write_video

# Kinds of files that are sought in each another way: by number, by time, by counting.
KINDS = ("closed.mp4", "open.mkv", "open.ts", "uneven.mp4", "uneven.webm", "hevc.mp4", "vp9.webm", "b_frames.avi", "mpeg2.mpg")
CUTS = (0.0, 1.0, 1.31, 2.875, 2.876, 4.001, 5.5, 7.9)
"""Seconds at 8 frames a second: on frames, beside them, and far from them."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Entry, Probe, list[Frames]]]:
    """A file of each kind, what probe finds in it, and all of its frames as PyAV decodes them."""
    folder = tmp_path_factory.mktemp("videos")
    found: dict[str, tuple[Entry, Probe, list[Frames]]] = {}
    for case in CASES:
        if case.name in KINDS:
            path = case.write(folder)
            with av.open(str(path)) as container:
                whole = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
            assert len(whole) == FRAMES
            found[case.name] = (entry_of(path, result := probe(path)), result, whole)
    return found


def times_of(case: Case) -> NDArray[np.float64]:
    """Seconds of every frame."""
    return np.array(UNEVEN if case.times else [1000 * n / case.rate for n in range(FRAMES)]) / 1000


def pieces_of(case: Case) -> list[tuple[float, float, list[int]]]:
    """Begin, end and the numbers of the frames that lie between."""
    times = times_of(case)
    early = 0.3 * (times[-1] - times[0]) / (FRAMES - 1)
    cuts = [cut * RATE / case.rate for cut in CUTS] + [0.0]
    limits = zip(cuts, [*cuts[1:-1], 0.0], strict=False)
    return [
        (begin, end, [n for n, time in enumerate(times) if begin <= time + early and (not end or time + early < end)])
        for begin, end in limits
    ]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=lambda case: case.name)
def test_a_piece_has_exactly_the_frames_of_the_whole_file_that_lie_in_it(
    case: Case, files: dict[str, tuple[Entry, Probe, list[Frames]]]
) -> None:
    entry, found, whole = files[case.name]
    pieces = pieces_of(case)
    assert list(chain(*(inside for *_, inside in pieces))) == list(range(FRAMES)), "pieces that follow on each other share and lose none"
    for begin, end, inside in pieces:
        part = found.piece(begin, end)
        assert (part.frames, part.fps, part.decoder) == (len(inside), found.fps, found.decoder)
        piece = replace(entry, begin=begin, end=end, frames=part.frames, duration=part.duration)
        # Of an uneven file that nobody examined the mean interval is what its header says.
        unexamined = [] if case.times else [replace(piece, bytes=piece.bytes + 1), replace(piece, decoder="", fps=0.0)]
        for known in (piece, replace(piece, decoder="pyav"), *unexamined):
            for start, stride in ((0, 1), (len(inside) // 2, 1), (1, 3)):
                wanted = inside[start::stride]
                if wanted:
                    clip = read_clip(known, Span(len(wanted), stride=stride, start=start))
                    assert numbers(clip) == wanted, (known.decoder, begin, end, start, stride)
                    assert known.decoder == "decord" or np.array_equal(clip, np.stack([whole[number] for number in wanted]))
                with pytest.raises(MediaError, match=f"of the piece from {begin:g} to .*, wanted {len(wanted) + 1}"):
                    read_clip(known, Span(len(wanted) + 1, stride=stride, start=start))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=lambda case: case.name)
def test_sampling_by_time_stays_in_the_piece(case: Case, files: dict[str, tuple[Entry, Probe, list[Frames]]]) -> None:
    entry, fps = files[case.name][0], case.rate * 0.4
    times, early = times_of(case), 0.3 / entry.fps
    for begin, end, inside in pieces_of(case):
        if len(inside) < 10:
            continue
        piece = replace(entry, begin=begin, end=end, frames=len(inside))
        here = times[inside]
        for start in (0.0, 2.2 / case.rate):
            first = max(0, int(np.searchsorted(here, (begin if case.times else here[0]) + start + early, side="right")) - 1)
            places = [int(np.searchsorted(here, here[first] + k / fps + early, side="right")) - 1 for k in range(3)]
            assert numbers(read_clip(piece, Span(3, fps=fps, start=start))) == [inside[place] for place in places], (begin, start)
        assert numbers(read_clip(replace(piece, decoder="", fps=0.0), Span(1, fps=fps))) == inside[:1]
        with pytest.raises(MediaError, match="of the piece from"):
            read_clip(piece, Span(FRAMES // 2, fps=fps))


def film(path: Path, frames: int = 60) -> Path:
    write_video(path, counting_clip(frames, 64, 64), fps=10)
    return path


@pytest.mark.parametrize("fps", [None, 10.0, 4.0, 15.0])
def test_starts_are_drawn_all_over_the_piece_and_nowhere_else(tmp_path: Path, fps: float | None) -> None:
    entry = entry_of(film(tmp_path / "film.mp4"))
    limits = ((0.0, 2.5), (2.5, 6.0))
    pieces = [replace(entry, begin=begin, end=end, frames=round(10 * (end - begin)), duration=end - begin) for begin, end in limits]
    # A window as large as the frame: its bars can be read.
    source = PixelDataset(pieces, (), Framing(64, frames=5, fps=fps, crop=64))
    for item, (begin, end) in enumerate(limits):
        seen = set[int]()
        for number in range(40):
            sample = source[Draw("video", item, number, 0)]
            assert not sample.failure
            seen |= set(numbers(to_uint8(sample.content)))
        assert 10 * begin <= min(seen) < 10 * begin + 4 and 10 * end - 4 <= max(seen) < 10 * end


# ---- The index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Medium]:
    """Examines in this process, which is faster, and notes what."""
    seen: list[Medium] = []

    def run(function: Callable[[Medium], list[Facts]], media: list[Medium], *rest: object) -> Iterator[tuple[Medium, list[Facts]]]:
        for medium in media:
            seen.append(medium)
            yield medium, function(medium)

    monkeypatch.setattr(building, "run_apart", run)
    return seen


def build(folder: Path, text: str, again: bool = False) -> Built:
    (folder / "list.csv").write_text(text)
    return build_index(list_source(str(folder / "list.csv")), folder / "i.parquet", Options(again))


def test_scene_lists_become_pieces(tmp_path: Path, jobs: list[Medium]) -> None:
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
    assert [numbers(read_clip(entry, Span(2))) for entry in (*train, *val, *test)] == [[0, 1], [25, 26], [40, 41], [0, 1]]
    assert str(val[0].place) == f"{tmp_path}/film.mp4, from second 2.5 to 4"
    (selection,) = select({"video": val}, Framing(64, frames=17), [Bucket(64, 64)], {"video": np.array([], np.int64)}).values()
    assert selection.reason.tolist() == [SHORT, USED], "long enough is what the piece has"


def test_jsonl_has_pieces_too(tmp_path: Path) -> None:
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
def test_wrong_pieces_are_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(f"path,begin,end,duration\n{row}\n")
    with pytest.raises(ValueError, match=message):
        list_source(str(tmp_path / "list.csv"))


def test_an_index_with_an_impossible_piece_is_refused(tmp_path: Path) -> None:
    same = {"kind": "video", "frames": 17, "fps": 8.0, "width": 8, "height": 8, "caption": "", "label": -1, "split": "train", "bytes": 9}
    for begin, end, message in (
        (-1.0, 0.0, "begin must be"),
        (float("nan"), 0.0, "begin must be"),
        (3.0, 3.0, "end must lie behind begin"),
    ):
        with pytest.raises(ValueError, match=f"entry 0: {message}"):
            write_index([{**same, "path": "a.mp4", "begin": begin, "end": end}], tmp_path / "i.parquet")


def test_only_new_pieces_are_examined_and_an_interrupted_index_goes_on(
    tmp_path: Path, jobs: list[Medium], monkeypatch: pytest.MonkeyPatch
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


def test_the_quarantine_tells_pieces_apart(tmp_path: Path, jobs: list[Medium]) -> None:
    film(tmp_path / "film.mp4")
    text = "path,begin,end\nfilm.mp4,0,2\nfilm.mp4,2,4\nfilm.mp4,5,7\nfilm.mp4,7,9\n"
    built = build(tmp_path, text)
    quarantine = Quarantine.beside(tmp_path / "i.parquet")
    beyond = Place("film.mp4", -1, 7.0, 9.0)
    assert quarantine.reasons == {beyond: "truncated: no frame from 7 to 9 s: the file has 6.00 s"} and built.quarantined == 1
    quarantine.add(Place("film.mp4", -1, 2.0, 4.0), "a logo")
    quarantine.write()
    entries = Index(tmp_path / "i.parquet", "train").videos
    (selection,) = select({"video": entries}, Framing(64), [Bucket(64, 64)], {"video": quarantine.positions(entries)}).values()
    assert selection.reason.tolist() == [USED, QUARANTINED, SHORT, QUARANTINED]
    (tmp_path / "film.mp4").write_bytes(b"words " * 99)
    assert build(tmp_path, text).quarantined == 4
    film(tmp_path / "film.mp4")
    build(tmp_path, text)
    assert list(Quarantine.beside(tmp_path / "i.parquet").reasons) == [Place("film.mp4", -1, 2.0, 4.0), beyond]


def test_copies_are_the_same_piece_of_the_same_bytes(tmp_path: Path, jobs: list[Medium], monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(film(tmp_path / "a.mp4"), tmp_path / "b.mp4")
    build(
        tmp_path,
        "path,begin,end,split\na.mp4,0,2,val\na.mp4,2,4,train\na.mp4,4,6,train\nb.mp4,0,2,train\nb.mp4,2.0,4,train\nb.mp4,3,5,train\n",
    )
    monkeypatch.setattr("walt_pl.indexing.doctor.run_apart", building.run_apart)
    findings = diagnose(tmp_path / "i.parquet", Options(), {})
    copies = {finding.place: finding.detail for finding in findings if finding.finding == "duplicate"}
    assert copies == {
        Place("b.mp4", -1, 0.0, 2.0): "the same bytes as a.mp4, from second 0 to 2",
        Place("b.mp4", -1, 2.0, 4.0): "the same bytes as a.mp4, from second 2 to 4",
    }
    report = list(csv.DictReader(write_report(findings, tmp_path / "i.parquet").open()))
    assert {(row["path"], row["begin"], row["end"]) for row in report if row["finding"] == "duplicate"} == {
        ("b.mp4", "0.0", "2.0"),
        ("b.mp4", "2.0", "4.0"),
    }
