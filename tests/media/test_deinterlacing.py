"""Interlaced frames become progressive ones, and each is the same whichever part of a file is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.clips import encode, entry_of, woven_clip
from walt_pl.data.index import IndexEntry
from walt_pl.media import reading
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.deinterlacing import Neighbours, deinterlace
from walt_pl.media.probing import probe
from walt_pl.media.reading import read_last_frames, read_sizes
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames, MediaError

ON = DecodeOptions(deinterlace=True)
COUNT = 30
FIELDS = {"flags": "+ilme+ildct"}
TURNED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
UNEVEN = tuple(40 * n + 500 * (n > 8) + 900 * (n > 17) for n in range(COUNT))
FILES = {
    "closed.mp4": ("libx264", {"x264-params": "tff=1:keyint=12:bframes=0:open-gop=0"}),
    "bottom.mkv": ("libx264", {"x264-params": "bff=1:keyint=12:bframes=3:open-gop=1"}),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "uneven.mkv": ("libx264", {"x264-params": "tff=1:keyint=12:bframes=3"}),
    "turned.mp4": ("libx264", {"x264-params": "tff=1:keyint=12"}),
}


def comb(clip: Frames) -> float:
    """Mean distance of a row from the mean of the rows above and below."""
    grey = clip.astype(float).mean(-1)
    return float(np.abs(grey[:, 1:-1] - (grey[:, :-2] + grey[:, 2:]) / 2).mean())


def yadif_of_the_whole_file(path: Path) -> Frames:
    """All frames through one filter graph, as `ffmpeg -vf yadif=0:-1:1` does."""
    shown = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("yadif", "0:-1:1"), graph.add("buffersink")).configure()
        for frame in [*container.decode(stream), None]:
            graph.vpush(frame)
            while True:
                try:
                    shown.append(graph.vpull().to_ndarray(format="rgb24"))
                except (BlockingIOError, EOFError):
                    break
    return np.stack(shown)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, IndexEntry]:
    """The file of each kind, as the index has it."""
    folder = tmp_path_factory.mktemp("interlaced")
    for name, (codec, options) in FILES.items():
        matrix = TURNED if name == "turned.mp4" else None
        times = UNEVEN if name == "uneven.mkv" else None
        encode(folder / name, woven_clip(COUNT), codec, rate=25, times=times, matrix=matrix, **FIELDS, **options)
    return {name: entry_of(folder / name) for name in FILES}


def read(entry: IndexEntry, options: DecodeOptions = ON, **frame_range: object) -> Frames:
    return read_sizes(entry, FrameRange(**frame_range), (None,), options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
def test_read_sizes_deinterlaced_equals_yadif_of_the_whole_file(name: str, files: dict[str, IndexEntry]) -> None:
    assert probe(files[name].path).interlaced
    theirs = yadif_of_the_whole_file(files[name].path)
    with av.open(str(files[name].path)) as container:
        quarters = next(container.decode(video=0)).rotation // 90
    plain, clip = (np.rot90(read(files[name], options, frames=COUNT), -quarters, (1, 2)) for options in (DecodeOptions(), ON))
    assert comb(plain) > 8 > 0.2 > comb(clip)
    assert np.array_equal(clip, theirs)


@pytest.mark.parametrize("name", FILES)
def test_read_sizes_deinterlaced_in_parts_equals_the_whole(name: str, files: dict[str, IndexEntry]) -> None:
    entry = files[name]
    whole = read(entry, frames=COUNT)
    for start in range(0, COUNT - 2, 5 if name == "uneven.mkv" else 1):
        assert np.array_equal(read(entry, frames=3, start=start), whole[start : start + 3]), start
    assert np.array_equal(read(replace(entry, decoder="", fps=0.0), frames=2), whole[:2]), "not examined, as in a stream"
    for start, stride in ((0, 2), (1, 7), (3, 13)):
        picked = list(range(start, COUNT, stride))
        assert np.array_equal(read(entry, frames=len(picked), stride=stride, start=start), whole[picked]), (start, stride)


@pytest.mark.parametrize("examined", [True, False])
@pytest.mark.parametrize("name", ["closed.mp4", "uneven.mkv", "mpeg2.mpg"])
def test_read_sizes_deinterlaced_at_fps_gives_the_frames_of_the_whole(name: str, examined: bool, files: dict[str, IndexEntry]) -> None:
    entry = files[name] if examined else replace(files[name], decoder="")
    for fps in (10.0, 25.0, 50.0):
        for start in (0.0, 0.5):
            plain, ours = (read(entry, options, frames=5, fps=fps, start=start) for options in (DecodeOptions(), ON))
            whole, raw = read(files[name], frames=COUNT), read(files[name], DecodeOptions(), frames=COUNT)
            numbers = [next(n for n in range(COUNT) if np.array_equal(raw[n], frame)) for frame in plain]
            assert np.array_equal(ours, whole[numbers]), (fps, start)


@pytest.mark.parametrize("name", ["closed.mp4", "uneven.mkv"])
def test_read_sizes_deinterlaced_takes_no_neighbour_from_outside_of_a_piece(name: str, files: dict[str, IndexEntry]) -> None:
    entry = replace(files[name], begin=UNEVEN[5] / 1000, end=UNEVEN[9] / 1000 if name == "uneven.mkv" else 9 / 25)
    whole, piece = read(files[name], frames=COUNT), read(entry, frames=4)
    assert np.array_equal(piece[1:3], whole[6:8]), "inside of it, nothing differs"
    assert not np.array_equal(piece[0], whole[5]) and not np.array_equal(piece[3], whole[8]), "its ends are like those of a file"
    assert comb(piece) < 1 and np.array_equal(read(entry, frames=2, start=1), piece[1:3])


def test_read_sizes_with_deinterlace_keeps_progressive_frames_bit_for_bit(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", woven_clip(12), "libx264", rate=25, **{"x264-params": "keyint=6"})
    entry = entry_of(tmp_path / "a.mp4", decoder="pyav")
    assert not probe(tmp_path / "a.mp4").interlaced
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert deinterlace(Neighbours(frame, frame, frame)) is frame
    assert np.array_equal(read(entry, frames=12), read(entry, DecodeOptions(), frames=12))


def test_read_sizes_with_deinterlace_does_not_ask_decord(files: dict[str, IndexEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    assert files["closed.mp4"].decoder == "decord"
    monkeypatch.setattr(reading, "read_decord", lambda *_: pytest.fail("decord was asked"))
    read(files["closed.mp4"], frames=3)


def test_read_sizes_deinterlaces_only_the_marked_frames_of_a_mixed_file(tmp_path: Path) -> None:
    parts = []
    for flags in (FIELDS, {}, FIELDS):
        encode(tmp_path / "part.mpg", woven_clip(8), "mpeg2video", rate=25, **flags)
        parts.append((tmp_path / "part.mpg").read_bytes())
    (tmp_path / "mixed.mpg").write_bytes(b"".join(parts))
    entry = entry_of(tmp_path / "mixed.mpg")
    plain, clip = (read(entry, options, frames=entry.frames) for options in (DecodeOptions(), ON))
    same = [np.array_equal(*pair) for pair in zip(plain, clip, strict=True)]
    assert 7 <= sum(same) <= 9 and not any(same[:7]) and not any(same[-7:])
    assert np.array_equal(clip, yadif_of_the_whole_file(entry.path))


@pytest.mark.parametrize("fps", [None, 25.0])
def test_read_last_frames_of_an_interlaced_clip_are_progressive(fps: float | None, files: dict[str, IndexEntry]) -> None:
    whole = read(files["bottom.mkv"], frames=COUNT)
    assert np.array_equal(read_last_frames(files["bottom.mkv"].path, 4, fps), whole[-4:])


def test_deinterlace_leaves_out_neighbours_of_another_size(files: dict[str, IndexEntry], tmp_path: Path) -> None:
    def decoded(path: Path) -> Iterator[av.VideoFrame]:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)

    encode(tmp_path / "small.mp4", woven_clip(2, 32, 48), "libx264", rate=25, **FIELDS)
    large, small = next(decoded(files["closed.mp4"].path)), next(decoded(tmp_path / "small.mp4"))
    alone, between = (deinterlace(Neighbours(one, large, one)).to_ndarray(format="rgb24") for one in (None, small))
    assert np.array_equal(alone, between)


def test_deinterlace_keeps_the_colour_tags_and_the_turn(files: dict[str, IndexEntry]) -> None:
    with av.open(str(files["turned.mp4"].path)) as container:
        frame = next(container.decode(video=0))
    progressive = deinterlace(Neighbours(None, frame, None))
    assert not progressive.interlaced_frame and progressive.rotation == frame.rotation != 0
    for tag in ("colorspace", "color_range", "color_trc", "color_primaries"):
        assert getattr(progressive, tag) == getattr(frame, tag)


def test_read_sizes_deinterlace_of_pictures_too_small_for_it_is_a_media_error(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", woven_clip(3, 2, 128), "mpeg2video", rate=25, **FIELDS)
    assert probe(tmp_path / "a.mkv").interlaced
    with pytest.raises(MediaError, match=r"a\.mkv: not a video that can be read"):
        read(entry_of(tmp_path / "a.mkv"), frames=3)


def test_read_sizes_deinterlaces_and_squares_the_pixels_at_once(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options=FIELDS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 144, 180, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for picture in woven_clip(10, 144, 180):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    entry = entry_of(tmp_path / "a.ts")
    clip = read_sizes(entry, FrameRange(10), ((72, 72),), ON)[0]
    assert clip.shape == (10, 72, 128, 3) and (entry.height, entry.width) == (144, 256)
    assert read(entry, frames=10).shape == (10, 144, 256, 3) and comb(read(entry, frames=10)) < 0.5
