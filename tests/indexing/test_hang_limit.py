"""Files at which a decoder hung or crashed: the limit counts frames found, and a larger one examines them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.clips import counting_clip
from tests.helpers.sources import shard
from walt_pl.data.index import Index, MediaKey
from walt_pl.data.quarantine import Quarantine
from walt_pl.indexing import build_index as building
from walt_pl.indexing import probe_file, tar_shards
from walt_pl.indexing.build_index import BuildReport, IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.hang_limit import describe_lost, is_examined_again, total_seconds
from walt_pl.indexing.isolated_pool import LostJob
from walt_pl.indexing.probe_file import MediaFacts, MediaFile
from walt_pl.media.writing import write_video

HANG, CRASH = LostJob("hang", "nothing new"), LostJob("crash", "SIGSEGV")


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> dict[str, LostJob]:
    """Files that are lost, by name. All others are examined in this process."""
    files: dict[str, LostJob] = {}

    def run(
        function: Callable[[MediaFile], list[MediaFacts]], jobs: list[MediaFile], *rest: object
    ) -> Iterator[tuple[MediaFile, list[MediaFacts] | LostJob]]:
        for job in jobs:
            yield job, files.get(Path(job.file).name) or function(job)

    monkeypatch.setattr(building, "run_isolated", run)
    return files


def build(source: Path | None, out: Path, **options: object) -> BuildReport:
    return build_index(list_source(str(source)) if source else None, out, IndexOptions(**options))  # type: ignore[arg-type]


def write_still(path: Path, frames: int) -> None:
    """Write an H.264 video of one picture, as a person records a slide."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24").reformat(format="yuv420p")
        for time in range(frames):
            picture.pts = time
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def test_build_index_takes_a_still_picture_of_many_frames(tmp_path: Path) -> None:
    """All of its frames take more than the limit."""
    (tmp_path / "still").mkdir()
    write_still(tmp_path / "still" / "a.mp4", 20_000)
    assert build(tmp_path / "still", tmp_path / "i.parquet", seconds=0.4).quarantined == 0
    assert Index(tmp_path / "i.parquet", "train").videos[0].frames == 20_000


@pytest.mark.parametrize("outcome", [HANG, CRASH])
@pytest.mark.parametrize("listed", [True, False])
def test_build_index_examines_a_lost_file_again_with_more_seconds(
    tmp_path: Path, lost: dict[str, LostJob], outcome: LostJob, listed: bool
) -> None:
    write_video(tmp_path / "clips" / "a.mp4", counting_clip(18), 8)
    write_video(tmp_path / "clips" / "b.mp4", counting_clip(20), 8)
    source, out = tmp_path / "clips", tmp_path / "i.parquet"
    lost["a.mp4"] = outcome
    assert build(source, out, seconds=60).quarantined == 1
    reason = Quarantine.beside(out).reasons[MediaKey("clips/a.mp4")]
    assert reason == f"{outcome.finding}: {outcome.reason} (--seconds 60; more of them, or a change of the file, examine it again)"
    del lost["a.mp4"]
    for seconds in (60, 5):
        assert (built := build(source, out, seconds=seconds)).examined == 0 and built.quarantined == 1
    assert (built := build(source if listed else None, out, seconds=61)).examined == 1 and built.quarantined == 0
    assert {entry.frames for entry in Index(out, "train").videos} == {18, 20}


def test_build_index_remembers_the_larger_limit_of_a_file_that_is_lost_again(tmp_path: Path, lost: dict[str, LostJob]) -> None:
    write_video(tmp_path / "clips" / "a.mp4", counting_clip(18), 8)
    lost["a.mp4"] = HANG
    for seconds, examined in ((60, 1), (600, 1), (600, 0), (60, 0)):
        assert build(tmp_path / "clips", tmp_path / "i.parquet", seconds=seconds).examined == examined


def test_build_index_examines_a_lost_file_or_member_again_if_it_changed(tmp_path: Path, lost: dict[str, LostJob]) -> None:
    write_video(tmp_path / "a.mp4", counting_clip(18), 8)
    shard(tmp_path / "set" / "s.tar", {"0.mp4": (tmp_path / "a.mp4").read_bytes()})
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    lost |= {"a.mp4": HANG, "s.tar": CRASH}
    for source in (tmp_path / "list.csv", tmp_path / "set"):
        build(source, tmp_path / "i.parquet")
    assert len(Quarantine.beside(tmp_path / "i.parquet")) == 2
    lost.clear()
    write_video(tmp_path / "a.mp4", counting_clip(19), 8)
    shard(tmp_path / "set" / "s.tar", {"0.mp4": (tmp_path / "a.mp4").read_bytes()})
    for source in (tmp_path / "list.csv", tmp_path / "set"):
        built = build(source, tmp_path / "i.parquet")
    assert built.quarantined == 0


def test_build_index_continues_an_interrupted_run_with_more_seconds(
    tmp_path: Path, lost: dict[str, LostJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clips" / "a.mp4", counting_clip(18), 8)
    lost["a.mp4"] = HANG

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "write_table", stop)
        build(tmp_path / "clips", tmp_path / "i.parquet", seconds=60)
    lost.clear()
    assert build(tmp_path / "clips", tmp_path / "i.parquet", seconds=120).quarantined == 0


@pytest.mark.parametrize("seconds", [60, 0.1, 1 / 3, 2.5e8, 1e-7])
def test_is_examined_again_reads_what_describe_lost_writes(seconds: float) -> None:
    reason = f"hang: {describe_lost(HANG, seconds)}"
    assert (
        not is_examined_again(reason, seconds) and not is_examined_again(reason, seconds * 0.9) and is_examined_again(reason, seconds * 1.1)
    )


def test_is_examined_again_knows_other_findings_and_reasons_without_a_limit() -> None:
    assert is_examined_again("hang: not decoded within 60 seconds", 60), "older versions counted the clock"
    for reason in ("corrupt: x (--seconds 1; more of them)", "shows my face", "", "duplicate: the same bytes as b.mp4"):
        assert not is_examined_again(reason, 1e9)


def test_total_seconds_is_out_of_reach_of_films() -> None:
    film = MediaFile("a.mkv", "video", -1, 50 * 10**9, 0, 50 * 10**9)
    assert total_seconds(film, 60) == 300_000 and total_seconds(MediaFile("a.mp4", "video", -1, 9, 0, 9), 60) == 60_000


def test_digest_gives_a_sign_for_each_part_and_hashes_a_member_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[None] = []
    monkeypatch.setattr(probe_file, "give_sign", lambda: signs.append(None))
    content = bytes(range(256)) * 10_000
    (tmp_path / "a.bin").write_bytes(content)
    for offset, length in ((-1, len(content)), (1000, len(content) - 2000)):
        signs.clear()
        part = content if offset < 0 else content[offset : offset + length]
        assert (
            probe_file.digest(probe_file.stat_media_file(str(tmp_path / "a.bin"), "", offset, length)) == hashlib.sha256(part).hexdigest()
        )
        assert len(signs) == 3, "2.6 MB, a sign for each MiB"


def test_list_shard_gives_a_sign_for_each_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[None] = []
    monkeypatch.setattr(tar_shards, "give_sign", lambda: signs.append(None))
    tar_shards.list_shard(str(shard(tmp_path / "s.tar", {f"{number}.png": b"x" for number in range(5)})))
    assert len(signs) == 5
