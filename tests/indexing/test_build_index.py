"""Building and extending an index, and the doctor's findings, on real files with every kind of damage."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.sources import shard
from walt_pl.cli.console import print_table
from walt_pl.data.index import Index, MediaKey
from walt_pl.data.quarantine import Quarantine
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import BuildReport, IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.doctor import diagnose, render_findings, write_report
from walt_pl.indexing.probe_file import MediaFacts, MediaFile, probe_media_file
from walt_pl.media.types import Frames
from walt_pl.media.writing import write_image, write_video


def noise(frames: int, seed: int = 0) -> Frames:
    """Moving, and large enough a file to be cut."""
    return np.random.default_rng(seed).integers(0, 255, (frames, 48, 64, 3), np.uint8)


def encode(path: Path, clip: Frames, times: Iterable[int]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for picture, time in zip(clip, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path: Path, source: Path, share: float) -> None:
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.fixture(scope="session")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three sound clips, two sound images, and one file of each kind of trouble."""
    folder = tmp_path_factory.mktemp("ward")
    for name, frames in (("a.mp4", 20), ("b.mp4", 24), ("val/c.mp4", 18), ("short.mp4", 4)):
        write_video(folder / name, noise(frames, frames), fps=8)
        (folder / name).with_suffix(".txt").write_text(f"clip {name}")
    encode(folder / "uneven.mkv", noise(30), np.cumsum([1, 1, 4] * 10).tolist())
    encode(folder / "whole.mkv", noise(40), range(40))
    cut(folder / "cut.mkv", folder / "whole.mkv", 0.5)
    cut(folder / "cut.mp4", folder / "b.mp4", 0.5)
    (folder / "whole.mkv").unlink()
    (folder / "words.mp4").write_text("just words\n" * 100)
    (folder / "empty.avi").write_bytes(b"")
    shutil.copy(folder / "val/c.mp4", folder / "copy.mp4")
    write_image(folder / "p.png", noise(1, 1)[0])
    write_image(folder / "q.jpg", noise(1, 2)[0])
    cut(folder / "cut.png", folder / "p.png", 0.7)
    cut(folder / "cut.jpg", folder / "q.jpg", 0.5)
    return folder


BROKEN = {"cut.mkv", "cut.mp4", "words.mp4", "empty.avi", "cut.png", "cut.jpg"}


@pytest.fixture
def folder(ward: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ward, tmp_path / "clips"))


Examine = Callable[[MediaFile], MediaFacts]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[MediaFile]:
    """Examines in this process, and notes what."""
    seen: list[MediaFile] = []

    def run(function: Examine, jobs: Iterable[MediaFile], *rest: object) -> Iterator[tuple[MediaFile, MediaFacts]]:
        for job in jobs:
            seen.append(job)
            yield job, function(job)

    monkeypatch.setattr(building, "run_isolated", run)
    return seen


def build(folder: Path, out: Path, **options: object) -> BuildReport:
    return build_index(list_source(str(folder)), out, IndexOptions(**options))  # type: ignore[arg-type]


def names(reasons: Iterable[MediaKey]) -> set[str]:
    return {Path(place.path).name for place in reasons}


def test_build_index_quarantines_broken_files_and_indexes_the_others(folder: Path, tmp_path: Path) -> None:
    built = build(folder, tmp_path / "data" / "set.parquet", workers=2)
    assert (built.rows, built.added, built.examined, built.quarantined) == (14, 14, 14, len(BROKEN))
    quarantine = Quarantine.beside(tmp_path / "data" / "set.parquet")
    assert names(quarantine.reasons) == BROKEN
    train = Index(tmp_path / "data" / "set.parquet", "train")
    entries = {entry.path.name: entry for entry in [*train.videos, *train.images]}
    clip = entries["b.mp4"]
    assert (clip.frames, clip.fps, clip.width, clip.height, clip.caption) == (24, 8.0, 64, 48, "clip b.mp4")
    assert clip.duration == pytest.approx(3.0) and clip.decoder == "decord" and not clip.variable_rate
    assert clip.path.samefile(folder / "b.mp4") and clip.bytes == clip.path.stat().st_size and clip.modified == clip.path.stat().st_mtime_ns
    assert entries["uneven.mkv"].variable_rate and entries["uneven.mkv"].frames == 30
    picture = entries["q.jpg"]
    assert (picture.frames, picture.fps, picture.width, picture.height, picture.decoder, picture.kind) == (
        1,
        0.0,
        64,
        48,
        "pillow",
        "image",
    )
    assert entries["words.mp4"].frames == 0 and entries["words.mp4"].decoder == ""
    assert [entry.path.name for entry in Index(tmp_path / "data" / "set.parquet", "val").videos] == ["c.mp4"]


def test_diagnose_finds_every_kind_of_trouble(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set.parquet"
    build(folder, out, workers=2)
    (folder / "a.mp4").unlink()
    os.utime(folder / "b.mp4", (0, 0))
    changed = build_index(None, out, IndexOptions(again=True, workers=2)).changed
    findings = diagnose(out, IndexOptions(workers=2), changed)
    found = {(Path(finding.place.path).name, finding.finding) for finding in findings}
    for name, words in {
        "a.mp4": {"missing"},
        "cut.mkv": {"truncated"},
        "cut.mp4": {"corrupt", "truncated"},
        "words.mp4": {"corrupt"},
        "empty.avi": {"corrupt"},
        "cut.png": {"truncated", "corrupt"},
        "cut.jpg": {"truncated"},
        "copy.mp4": {"duplicate"},
        "short.mp4": {"short"},
        "uneven.mkv": {"variable rate"},
        "p.png": {"no caption"},
        "b.mp4": {"changed"},
    }.items():
        assert {word for file, word in found if file == name} & words, name
    assert not [finding for finding in findings if Path(finding.place.path).name == "c.mp4"], "the held-out original stays"
    assert ("b.mp4", "written again since it was indexed, with as many bytes") in {(Path(f.place.path).name, f.detail) for f in findings}
    rows = list(csv.DictReader(write_report(findings, out).open()))
    assert len(rows) == len(findings) and {*MediaKey._fields, "split", "kind", "finding", "detail"} == set(rows[0])
    print_table(render_findings(findings, out))
    text = capsys.readouterr().out
    assert "truncated" in text and "clips/copy.mp4: the same bytes as clips/val/c.mp4" in text
    train = Index(out, "train").videos
    assert names(train.places(Quarantine.beside(out).positions(train))) == {
        *BROKEN - {"cut.png", "cut.jpg"},
        "a.mp4",
        "copy.mp4",
    }


def test_build_index_second_run_examines_only_new_files(folder: Path, tmp_path: Path, here: list[MediaFile]) -> None:
    out = tmp_path / "set.parquet"
    (folder / "b.mp4").rename(tmp_path / "b.mp4")
    build(folder, out)
    state = out.stat().st_mtime_ns
    here.clear()
    assert build(folder, out).examined == 0 and here == [] and out.stat().st_mtime_ns == state
    (tmp_path / "b.mp4").rename(folder / "b.mp4")
    os.utime(folder / "p.png", ns=(1, 1))
    built = build(folder, out)
    assert names(MediaKey(medium.file) for medium in here) == {"b.mp4", "p.png"} and built.added == 1
    build(folder, tmp_path / "once.parquet")
    assert (tmp_path / "once.parquet").read_bytes() == out.read_bytes(), "as if it had been built in one go"


def test_build_index_interrupted_resumes_where_it_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set.parquet"
    seen: list[str] = []

    def interrupted(function: Examine, jobs: Iterable[MediaFile], *rest: object) -> Iterator[tuple[MediaFile, MediaFacts]]:
        for number, job in enumerate(jobs):
            if number == 6 and len(seen) == 6:
                raise KeyboardInterrupt
            seen.append(job.file)
            yield job, function(job)

    monkeypatch.setattr(building, "run_isolated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(folder, out)
    assert not out.exists()
    journal = tmp_path / ".set.parquet.journal"
    journal.write_text(journal.read_text()[:-5])  # the power went while a line was written
    built = build(folder, out)
    assert built.examined == 14 and len(seen) == 15 and len(set(seen)) == 14, "one of them again, whose line was cut"
    assert not journal.exists()
    monkeypatch.setattr(building, "run_isolated", lambda function, jobs, *rest: ((job, function(job)) for job in jobs))
    build(folder, tmp_path / "once.parquet")
    assert (tmp_path / "once.parquet").read_bytes() == out.read_bytes()


def test_build_index_finds_later_damage_and_releases_repaired_files(folder: Path, tmp_path: Path, here: list[MediaFile]) -> None:
    out = tmp_path / "set.parquet"
    (folder / "raw.avi").write_bytes(b"")
    with av.open(str(folder / "raw.avi"), "w") as container:  # frames of their own: what is cut off is just missing
        stream = container.add_stream("mjpeg", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for picture in noise(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    build(folder, out)
    key = MediaKey("clips/raw.avi")
    assert key not in Quarantine.beside(out).reasons
    whole, row = (folder / "raw.avi").read_bytes(), pq.read_table(out).to_pylist()
    cut(folder / "raw.avi", folder / "raw.avi", 0.6)
    for _ in range(2):  # and it does not get used to it
        build(folder, out, again=True)
        assert Quarantine.beside(out).reasons[key].startswith(("truncated: ", "corrupt: "))
    (folder / "raw.avi").write_bytes(whole)
    build(folder, out)
    assert key not in Quarantine.beside(out).reasons
    frames = {old["path"]: old["frames"] for old in row}
    assert {new["path"]: new["frames"] for new in pq.read_table(out).to_pylist()} == frames


def test_build_index_calls_a_shortened_file_truncated_though_it_decodes(folder: Path, tmp_path: Path, here: list[MediaFile]) -> None:
    out, key = tmp_path / "set.parquet", MediaKey("clips/b.mp4")
    build(folder, out)
    whole, index = (folder / "b.mp4").read_bytes(), out.read_bytes()
    state = (folder / "b.mp4").stat()
    write_video(folder / "b.mp4", noise(10), fps=8)
    for _ in range(2):  # and it does not get used to it
        build(folder, out, again=True)
        assert Quarantine.beside(out).reasons[key] == "truncated: 10 frames, 24 when it was indexed"
    (folder / "b.mp4").write_bytes(whole)
    os.utime(folder / "b.mp4", ns=(state.st_atime_ns, state.st_mtime_ns))
    build(folder, out, again=True)
    assert key not in Quarantine.beside(out).reasons and out.read_bytes() == index


def test_build_index_keeps_rows_of_other_sources_and_deleted_files(folder: Path, tmp_path: Path, here: list[MediaFile]) -> None:
    out = tmp_path / "set.parquet"
    build(folder / "val", out)
    (tmp_path / "more.csv").write_text("path,caption,label\nclips/a.mp4,one,walk\nclips/a.mp4,two,run\nclips/gone.mp4,x,run\n")
    build_index(list_source(str(tmp_path / "more.csv")), out)
    rows = pq.read_table(out).to_pylist()
    assert [(row["path"], row["caption"], row["label"], row["frames"]) for row in rows] == [
        ("clips/a.mp4", "one", 1, 20),
        ("clips/a.mp4", "two", 0, 20),
        ("clips/gone.mp4", "x", 0, 0),
        ("clips/val/c.mp4", "clip val/c.mp4", -1, 18),
    ]
    assert Quarantine.beside(out).reasons == {MediaKey("clips/gone.mp4"): "missing: no such file"}
    assert len(here) == 3, "a file with two captions is examined once"


def test_build_index_never_changes_class_numbers(folder: Path, tmp_path: Path, here: list[MediaFile]) -> None:
    out = tmp_path / "set.parquet"
    for names_, wanted in ((("walk", "jump"), ["jump", "walk"]), (("walk", "climb"), ["jump", "walk", "climb"])):
        (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"clips/{f}.mp4,{n}\n" for f, n in zip("ab", names_, strict=True)))
        build_index(list_source(str(tmp_path / "a.csv")), out)
        assert (tmp_path / "set.classes.txt").read_text().split() == wanted
    assert pq.read_table(out)["label"].to_pylist() == [1, 2]


def test_build_index_examines_members_of_shards_in_place(folder: Path, tmp_path: Path) -> None:
    members = {
        "0.mp4": (folder / "a.mp4").read_bytes(),
        "0.txt": b"a clip",
        "1.jpg": (folder / "q.jpg").read_bytes(),
        "2.mp4": b"words" * 99,
    }
    shard(tmp_path / "s.tar", members)
    built = build_index(list_source(str(tmp_path / "s.tar")), tmp_path / "set.parquet", IndexOptions(workers=2))
    index = Index(tmp_path / "set.parquet", "train")
    clip = next(entry for entry in index.videos if entry.frames)
    assert (clip.frames, clip.caption, clip.bytes, clip.path) == (20, "a clip", len(members["0.mp4"]), tmp_path / "s.tar")
    assert clip.path.read_bytes()[clip.offset : clip.offset + clip.bytes] == members["0.mp4"]
    assert index.images[0].width == 64 and built.quarantined == 1
    assert Quarantine.beside(tmp_path / "set.parquet").positions(index.videos).tolist() == [1]


def test_build_index_val_split_depends_on_names_alone(tmp_path: Path, here: list[MediaFile]) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{number}.png")
    build(tmp_path / "pictures", tmp_path / "a.parquet", val=0.2)
    held = {entry.path.name for entry in Index(tmp_path / "a.parquet", "val").images}
    assert 4 <= len(held) <= 22
    for number in range(60, 80):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{number}.png")
    build(tmp_path / "pictures", tmp_path / "a.parquet", val=0.2)
    again = {entry.path.name for entry in Index(tmp_path / "a.parquet", "val").images}
    assert held == {name for name in again if int(name[:-4]) < 60}


def test_build_index_paths_lead_through_linked_folders(folder: Path, tmp_path: Path, here: list[MediaFile]) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "deep")
    shutil.copytree(folder / "val", tmp_path / "disk" / "val")
    for source, where in ((folder / "val", folder / "val"), (tmp_path / "data" / ".." / "val", tmp_path / "disk" / "val")):
        build(source, tmp_path / "data" / f"{where.parent.name}.parquet")
        assert Index(tmp_path / "data" / f"{where.parent.name}.parquet", "train").videos[0].path.samefile(where / "c.mp4")


def test_build_index_leaves_out_names_that_are_not_utf8_and_says_so(tmp_path: Path, here: list[MediaFile]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    built = build(tmp_path, tmp_path / "set.parquet")
    assert built.rows == 1 and "1 names are not UTF-8" in built.notes[-1]


def test_probe_media_file_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*arguments: object, **options: object) -> None:
        raise MemoryError("9 GiB")

    monkeypatch.setattr("walt_pl.indexing.probe_file.probe", explode)
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert probe_media_file(building.stat_media_file(str(tmp_path / "a.mp4"), "video"))[0].reason == "MemoryError: 9 GiB"
    assert probe_media_file(building.stat_media_file(str(tmp_path / "b.mp4"), "video"))[0].finding == "missing"
    beyond = MediaFile(str(tmp_path / "a.mp4"), "video", 0, 500, 1, 100)
    (found,) = probe_media_file(beyond)
    assert (found.finding, found.reason) == ("truncated", "the shard ends 400 bytes before it does")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"val": 1.0}, "--val must be"), ({"workers": 0}, "--workers must be"), ({"seconds": 0}, "--seconds must be above 0, got 0")],
)
def test_index_options_name_wrong_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexOptions(**options)  # type: ignore[arg-type]


def test_build_index_keeps_several_captions_of_a_clip_and_several_rows(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", noise(1)[0])
    write_image(tmp_path / "b.png", noise(1, 1)[0])
    several = '{"path": "a.png", "caption": ["a dog", "a cat"]}\n'
    (tmp_path / "a.jsonl").write_text(several + '{"path": "b.png", "caption": "one"}\n{"path": "b.png", "caption": "two"}\n')
    out = tmp_path / "i.parquet"
    build_index(list_source(str(tmp_path / "a.jsonl")), out)
    images, before = Index(out, "train").images, out.read_bytes()
    found = [(entry.path.name, entry.caption, entry.more_captions) for entry in images]
    assert found == [("a.png", "a dog", ("a cat",)), ("b.png", "one", ()), ("b.png", "two", ())]
    assert build_index(list_source(str(tmp_path / "a.jsonl")), out).examined == 0 and out.read_bytes() == before
    (tmp_path / "c.jsonl").write_text('{"path": "a.png", "caption": ["a bird", "a fish", "a fox"]}\n')
    build_index(list_source(str(tmp_path / "c.jsonl")), out)
    assert [entry.more_captions for entry in Index(out, "train").images] == [("a fish", "a fox"), (), ()], "the last list counts"
