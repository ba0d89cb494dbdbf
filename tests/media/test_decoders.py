"""Every decoder, on every kind of file, against the frames that were encoded."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.clips import (
    B_FRAMES,
    CASES,
    CLOSED,
    FRAMES,
    RATE,
    UNEVEN,
    Case,
    counting_clip,
    encode,
    entry_of,
    numbers,
    textured_clip,
)
from walt_pl.data.index import IndexEntry
from walt_pl.media import reading
from walt_pl.media.probing import Probe, probe, probe_picture
from walt_pl.media.reading import read_clip, read_picture, read_sizes
from walt_pl.media.resizing import cover_size
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_image

STARTS = (0, 1, 9, 10, 11, 12, 13, 23, 24, 25, 36, 47, FRAMES - 5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_read_clip_every_start_and_stride_gives_the_encoded_frames(case: Case, probes: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry = probes[case.name][0]
    for decoder in {entry.decoder, "pyav"}:
        for start in STARTS:
            for stride in (1, 3):
                count = min(5, (FRAMES - start - 1) // stride + 1)
                clip = read_clip(replace(entry, decoder=decoder), FrameRange(count, stride=stride, start=start))
                assert clip.shape == (count, case.height, case.width, 3)
                assert numbers(clip) == list(range(start, start + count * stride, stride)), (decoder, start, stride)


@pytest.mark.parametrize("share", [0.25, 0.375, 0.625, 1, 1.5625])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_read_clip_at_fps_gives_the_frames_shown_at_those_times(
    case: Case, share: float, probes: dict[str, tuple[IndexEntry, Probe]]
) -> None:
    entry, fps = probes[case.name][0], share * case.rate
    times = np.array(UNEVEN if case.times else [1000 * n / case.rate for n in range(FRAMES)]) / 1000
    with av.open(str(entry.path)) as container:
        render_build = float(container.streams.video[0].average_rate or 0)
    for examined, rate in ((entry, entry.fps), (replace(entry, decoder="", variable_rate=False), render_build)):
        early = 0.3 / rate
        for start in (0.0, 0.55, 1.5, 3.0):
            start *= RATE / case.rate
            first = np.searchsorted(times, start + early, side="right") - 1
            shown = [int(np.searchsorted(times, times[first] + k / fps + early, side="right") - 1) for k in range(7)]
            assert numbers(read_clip(examined, FrameRange(7, fps=fps, start=start))) == shown, (examined.decoder, start)


def test_read_clip_uses_decord_from_frame_0_and_pyav_after_a_seek(
    probes: dict[str, tuple[IndexEntry, Probe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("decord")
    used = []
    for name in ("read_decord", "_read_av"):
        read = getattr(reading, name)
        monkeypatch.setattr(reading, name, lambda *given, name=name, read=read: used.append(name) or read(*given))
    for name, start in (("closed.mp4", 0), ("closed.mp4", 5), ("open.mp4", 0)):
        assert numbers(read_clip(probes[name][0], FrameRange(4, start=start))) == list(range(start, start + 4))
    assert used == ["read_decord", "_read_av", "_read_av"]


def test_read_clip_never_gives_a_changed_file_to_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.mp4", counting_clip(20), "libx264", **CLOSED)
    entry = entry_of(tmp_path / "a.mp4", decoder="decord")
    monkeypatch.setattr("walt_pl.media.reading.read_decord", lambda *_, **__: pytest.fail("decord was asked"))
    assert numbers(read_clip(replace(entry, bytes=entry.bytes - 1), FrameRange(3))) == [0, 1, 2]


def test_read_clip_works_without_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.mp4", counting_clip(30), "libx264", **B_FRAMES)
    entry = entry_of(tmp_path / "a.mp4")
    whole = read_clip(entry, FrameRange(9))
    monkeypatch.setitem(sys.modules, "decord", None)
    assert np.array_equal(read_clip(entry, FrameRange(9)), whole) and numbers(whole) == list(range(9))
    assert probe(tmp_path / "a.mp4").decoder == "pyav"


MATRICES = {
    "upright": [65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30],
    "left": [0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30],
    "right": [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30],
    "over": [-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30],
    "mirrored": [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30],
}


@pytest.mark.parametrize("turn", MATRICES)
def test_read_clip_returns_rotated_files_upright(tmp_path: Path, turn: str) -> None:
    upright = textured_clip(1, 160, 240).repeat(12, 0)
    lying = {
        "upright": upright,
        "left": np.rot90(upright, -1, (1, 2)),
        "right": np.rot90(upright, 1, (1, 2)),
        "over": np.rot90(upright, 2, (1, 2)),
        "mirrored": upright[:, :, ::-1],
    }[turn]
    encode(tmp_path / "a.mp4", lying, "libx264", matrix=MATRICES[turn], crf="10")
    found = probe(tmp_path / "a.mp4")
    assert (found.height, found.width) == (160, 240)
    entry = entry_of(tmp_path / "a.mp4", found)
    for decoder in {entry.decoder, "pyav"}:
        clip = read_clip(replace(entry, decoder=decoder), FrameRange(3))
        assert clip.shape[1:3] == (160, 240) and np.abs(clip.astype(int) - upright[:3]).mean() < 8
        small = read_clip(replace(entry, decoder=decoder), FrameRange(3), (80, 80))
        assert small.shape[1:3] == (80, 120)
        assert np.abs(small.astype(int) - reference(clip, 80, 120)).max() <= 2


def reference(clip: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The resizing of the float path."""
    pictures = torch.tensor(clip).permute(0, 3, 1, 2).float()
    return F.interpolate(pictures, size=(rows, columns), mode="bicubic", antialias=True).clamp(0, 255).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("height", "width", "size", "mean", "most"), [(256, 256, (128, 128), 0.5, 2), (240, 320, (64, 64), 0.5, 2), (720, 1280, (64, 64), 1, 8)]
)
def test_read_sizes_scaled_while_decoding_equals_the_antialiased_resize(
    tmp_path: Path, height: int, width: int, size: tuple[int, int], mean: float, most: float
) -> None:
    encode(tmp_path / "a.mp4", textured_clip(3, height, width), "libx264", crf="10", **CLOSED)
    entry = entry_of(tmp_path / "a.mp4")
    for decoder in {entry.decoder, "pyav"}:
        entry = replace(entry, decoder=decoder)
        small, whole = read_sizes(entry, FrameRange(3), (size, None))
        assert small.shape[1:3] == cover_size(height, width, *size) and whole.shape[1:3] == (height, width)
        off = np.abs(small - reference(whole, *small.shape[1:3]))
        assert off.mean() < mean and off.max() <= most, (decoder, off.mean(), off.max())
        assert np.array_equal(read_clip(entry, FrameRange(3), size), small), "one decoding for two sizes, and one for each"


def test_read_clip_never_enlarges_and_returns_small_pictures_whole(tmp_path: Path) -> None:
    for height, width in ((128, 128), (130, 130)):
        encode(tmp_path / "a.mp4", textured_clip(3, height, width), "libx264", **CLOSED)
        size = (32, 32) if height == 128 else (132, 64)
        assert read_clip(entry_of(tmp_path / "a.mp4"), FrameRange(3), size).shape[1:3] == (height, width)


@pytest.mark.parametrize("name", ["open.mp4", "closed.mp4", "vp9.webm", "mpeg4.avi"])
def test_read_clip_reads_members_of_a_shard_in_place(tmp_path: Path, name: str, probes: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry = probes[name][0]
    write_image(tmp_path / "a.png", counting_clip(1)[0])
    shard = tmp_path / "a shard, 0.tar"
    with tarfile.open(shard, "w") as tar:
        for path in (tmp_path / "a.png", entry.path, tmp_path / "a.png"):
            tar.add(path, path.name)
    with tarfile.open(shard) as tar:
        picture, video = tar.getmembers()[:2]
    assert probe(shard, video.offset_data, video.size) == probes[name][1]
    member = replace(entry, path=shard, offset=video.offset_data)
    for start in (0, 11, 30):
        assert numbers(read_clip(member, FrameRange(5, start=start))) == list(range(start, start + 5))
    assert probe_picture(shard, picture.offset_data, picture.size) == Probe(1, 0.0, 96, 64, 0.0, False, "pillow")
    image = replace(member, offset=picture.offset_data, bytes=picture.size, kind="image", decoder="pillow")
    assert np.array_equal(read_picture(image)[0], counting_clip(1)[0])
    shard.write_bytes(shard.read_bytes()[: video.offset_data + video.size - 7])
    with pytest.raises(MediaError, match="truncated: the shard ends 7 bytes before the member does") as error:
        read_clip(member, FrameRange(5))
    assert str(error.value).startswith(f"{shard}, member at byte {video.offset_data}: ")


def test_read_picture_scales_large_pictures_while_reading(tmp_path: Path) -> None:
    picture = textured_clip(1, 200, 300)
    write_image(tmp_path / "a.png", picture[0])
    found = probe_picture(tmp_path / "a.png")
    entry = entry_of(tmp_path / "a.png", found, kind="image")
    small = read_picture(entry, (50, 50))
    assert small.shape == (1, 50, 75, 3) and np.abs(small - reference(picture, 50, 75)).max() <= 2


def test_read_clip_names_a_short_video_in_frames_and_seconds(probes: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry = probes["b_frames.mp4"][0]
    with pytest.raises(MediaError, match="found 4 frames from frame 60 on, wanted 17"):
        read_clip(entry, FrameRange(17, start=60))
    uneven = probes["uneven.mp4"][0]
    with pytest.raises(MediaError, match=r"found \d frames from second 8\.5 on, wanted 17"):
        read_clip(uneven, FrameRange(17, fps=4, start=8.5))


def test_read_clip_colours_equal_those_of_pyav(tmp_path: Path) -> None:
    """Both decoders see the same colours, or PyAV alone reads the file."""
    clip = np.zeros((12, 128, 160, 3), np.uint8)
    clip[:] = (200, 60, 30)
    for name, options in {"plain": {}, "bt709": {"colorspace": "bt709", "color_range": "tv"}, "full": {"color_range": "pc"}}.items():
        path = tmp_path / f"{name}.mp4"
        encode(path, clip, "libx264", **options)
        entry = entry_of(path)
        with av.open(str(path)) as container:
            truth = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert np.abs(read_clip(entry, FrameRange(2))[0].astype(int) - truth).mean() < 0.6, name
