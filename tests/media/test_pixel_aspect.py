"""Pixels that are not square: circles come out round, from every container and by every way of reading."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from tests.helpers.clips import CLOSED, entry_of
from walt_pl.media import pyav
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.pixel_aspect import display_size, pixel_aspect
from walt_pl.media.probing import probe
from walt_pl.media.reading import read_clip, read_last_frames, read_sizes, read_video
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames, MediaError

ANAMORPHIC = Fraction(64, 45)
"""PAL, 16:9: 720 x 576 is seen as 1024 x 576."""
TALL = Fraction(10, 11)
TURNED = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]


def write_circle(
    path: Path,
    aspect: Fraction,
    codec: str = "libx264",
    size: tuple[int, int] = (576, 720),
    matrix: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    frames: int = 5,
) -> Path:
    """Write a disc of as many rows as columns when it is seen, which moves down by a row a frame."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    radius = 0.35 * min(height, width * float(aspect))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=CLOSED if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for number in range(frames):
            disc = ((x - width / 2) * float(aspect)) ** 2 + (y - height / 2 - number) ** 2 < radius**2
            picture = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def box(picture: np.ndarray) -> tuple[int, int]:
    """Rows and columns of the white disc."""
    white = picture.mean(-1) > 128
    return tuple(int(np.ptp(np.flatnonzero(white.any(axis)))) + 1 for axis in (1, 0))  # type: ignore[return-value]


def scaled_by_ffmpeg(path: Path) -> Frames:
    """All frames as FFmpeg's scale filter shows them, with square pixels."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        ratio = stream.sample_aspect_ratio
        source = graph.add(
            "buffer", video_size=f"{stream.width}x{stream.height}", pix_fmt=stream.pix_fmt, time_base="1/25", pixel_aspect=str(ratio)
        )
        rule = "w=iw*sar:h=ih" if ratio > 1 else "w=iw:h=ih/sar"
        graph.link_nodes(source, graph.add("scale", f"{rule}:flags=bicubic"), graph.add("buffersink")).configure()
        shown = []
        for frame in container.decode(stream):
            graph.push(frame)
            shown.append(graph.vpull().to_ndarray(format="rgb24"))
    return np.stack(shown)


@pytest.mark.parametrize(
    ("name", "codec", "aspect", "seen"),
    [
        ("a.mp4", "libx264", ANAMORPHIC, (576, 1024)),
        ("a.mkv", "libx264", ANAMORPHIC, (576, 1024)),
        ("a.ts", "mpeg2video", ANAMORPHIC, (576, 1024)),
        ("a.mpg", "mpeg2video", Fraction(16, 15), (576, 768)),
        ("a.avi", "mpeg4", TALL, (634, 720)),
        ("tall.mp4", "libx264", TALL, (634, 720)),
        ("a.h264", "libx264", TALL, (634, 720)),
    ],
)
def test_read_video_of_pixels_that_are_not_square_shows_circles_round(
    name: str, codec: str, aspect: Fraction, seen: tuple[int, int], tmp_path: Path
) -> None:
    path = write_circle(tmp_path / name, aspect, codec)
    found, clip = probe(path), read_video(path, 5)
    assert (found.reason, found.height, found.width) == ("", *seen) and clip.shape[1:3] == seen, "the index says what is read"
    rows, columns = box(clip[0])
    assert abs(rows - columns) <= 2, (rows, columns)
    theirs = scaled_by_ffmpeg(path)
    assert theirs.shape[1:3] == pytest.approx(seen, abs=1)
    assert box(theirs[0]) == pytest.approx((rows, columns), abs=2)
    if theirs.shape == clip.shape:
        assert np.abs(theirs.astype(int) - clip).mean() < 1


def test_probe_of_pixels_that_are_not_square_and_turned_swaps_their_ratio(tmp_path: Path) -> None:
    path = write_circle(tmp_path / "a.mp4", ANAMORPHIC, size=(144, 180), matrix=TURNED)
    found, clip = probe(path), read_video(path, 5)
    assert (found.height, found.width) == (256, 144) == clip.shape[1:3]
    assert abs(np.subtract(*box(clip[0]))) <= 2
    small = read_clip(entry_of(path, found), FrameRange(2), (64, 36))
    assert small.shape == (2, 64, 36, 3) and abs(np.subtract(*box(small[0]))) <= 2


def test_pixel_aspect_of_the_container_beats_that_of_the_codec(tmp_path: Path) -> None:
    content = write_circle(tmp_path / "a.mp4", ANAMORPHIC, size=(144, 180)).read_bytes()
    old, new = (b"pasp" + number.to_bytes(4, "big") + of.to_bytes(4, "big") for number, of in ((64, 45), (16, 15)))
    assert content.count(old) == 1
    (tmp_path / "b.mp4").write_bytes(content.replace(old, new))
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.sample_aspect_ratio in (ANAMORPHIC, Fraction(16, 15))
    assert (probe(tmp_path / "b.mp4").height, probe(tmp_path / "b.mp4").width) == (144, 192)
    assert read_video(tmp_path / "b.mp4", 1).shape[1:3] == (144, 192)


@pytest.mark.parametrize("ratio", [None, 0, Fraction(10000, 1), Fraction(1, 10000), Fraction(101, 10), Fraction(1280, 1281), 1])
def test_pixel_aspect_absurd_missing_or_nearly_1_counts_as_square(ratio: Fraction | int | None) -> None:
    assert pixel_aspect(SimpleNamespace(sample_aspect_ratio=ratio)) == 1


def test_display_size_never_throws_a_row_or_column_away() -> None:
    assert display_size(576, 720, ANAMORPHIC) == (576, 1024) and display_size(480, 720, Fraction(8, 9)) == (540, 720)
    assert display_size(100, 100, Fraction(10)) == (100, 1000) and display_size(100, 100, Fraction(1, 10)) == (1000, 100)
    assert display_size(3, 5, Fraction(1)) == (3, 5)


def test_read_video_ignores_an_absurd_aspect_and_asks_for_no_more_memory(tmp_path: Path) -> None:
    content = write_circle(tmp_path / "a.mp4", ANAMORPHIC, size=(64, 96)).read_bytes()
    new = b"pasp" + (10000).to_bytes(4, "big") + (1).to_bytes(4, "big")
    (tmp_path / "b.mp4").write_bytes(content.replace(b"pasp" + (64).to_bytes(4, "big") + (45).to_bytes(4, "big"), new))
    assert read_video(tmp_path / "b.mp4", 1).shape == (1, 64, 96, 3)


def test_read_sizes_compares_max_pixels_with_the_size_that_is_seen(tmp_path: Path) -> None:
    entry = entry_of(write_circle(tmp_path / "a.mp4", Fraction(5), size=(64, 96)))
    assert read_sizes(entry, FrameRange(1), (None,), DecodeOptions(64 * 480))[0].shape == (1, 64, 480, 3)
    for decoder in ("pyav", "decord"):
        with pytest.raises(MediaError, match=r"too large: 480 x 64"):
            read_sizes(replace(entry, decoder=decoder), FrameRange(1), (None,), DecodeOptions(64 * 480 - 1))
    assert probe(tmp_path / "a.mp4", max_pixels=64 * 480 - 1).reason.startswith("too large: 480 x 64")


@pytest.mark.parametrize("decoder", ["decord", "pyav", ""])
def test_read_clip_of_an_index_of_an_older_version_has_the_right_aspect(decoder: str, tmp_path: Path) -> None:
    path = write_circle(tmp_path / "a.mp4", ANAMORPHIC, size=(144, 180), frames=20)
    assert probe(path).decoder == "pyav", "decord knows no pixel aspect"
    old = entry_of(path, decoder=decoder, height=144, width=180)
    for size, seen in ((None, (144, 256)), ((72, 72), (72, 128)), ((288, 288), (288, 512))):
        whole = read_clip(old, FrameRange(20), size)
        assert whole.shape == (20, *seen, 3) and abs(np.subtract(*box(whole[0]))) <= 2
        for start in (0, 7, 13):
            assert np.array_equal(read_clip(old, FrameRange(4, start=start), size), whole[start : start + 4]), "chunked equals whole"
    piece = replace(old, begin=0.4, end=0.6)
    assert np.array_equal(read_clip(piece, FrameRange(5)), read_clip(old, FrameRange(5, start=10)))
    assert np.array_equal(read_last_frames(path, 3), read_clip(old, FrameRange(3, start=17)))
    assert np.array_equal(read_last_frames(path, 3, 25.0), read_clip(old, FrameRange(3, start=17)))


def test_read_clip_resizes_once_from_the_stored_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, resized = write_circle(tmp_path / "a.mp4", ANAMORPHIC, size=(144, 180)), []
    resize = pyav.resize
    monkeypatch.setattr(pyav, "resize", lambda clip, to: resized.append((clip.shape[1:3], to)) or resize(clip, to))
    read_sizes(entry_of(path), FrameRange(1), ((72, 72), (200, 300), None))
    assert resized[-3:] == [((144, 180), (72, 128)), ((144, 180), (200, 356)), ((144, 180), (144, 256))]
    tiny = entry_of(write_circle(tmp_path / "tiny.mp4", ANAMORPHIC, size=(72, 90)))
    read_sizes(tiny, FrameRange(1), ((36, 36),))
    assert resized[-1] == ((72, 90), (36, 64)), "a small picture, too"


def test_read_clip_of_a_tar_member_has_its_pixel_aspect(tmp_path: Path) -> None:
    path = write_circle(tmp_path / "a.mp4", ANAMORPHIC, size=(144, 180))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.mp4")
        member.size = path.stat().st_size
        tar.addfile(member, io.BytesIO(path.read_bytes()))
    with tarfile.open(tmp_path / "a.tar") as tar:
        offset = tar.getmember("a.mp4").offset_data
    found = probe(tmp_path / "a.tar", offset, path.stat().st_size)
    assert (found.height, found.width, found.decoder) == (144, 256, "pyav")
    entry = entry_of(tmp_path / "a.tar", found, offset=offset, bytes=path.stat().st_size)
    assert np.array_equal(read_clip(entry, FrameRange(5)), read_video(path, 5))


def test_probe_refuses_a_pixel_aspect_that_changes_on_the_way(tmp_path: Path) -> None:
    parts = [
        write_circle(tmp_path / f"{n}.ts", aspect, "mpeg2video", (144, 180)).read_bytes()
        for n, aspect in enumerate((Fraction(16, 15), ANAMORPHIC))
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    assert "the pixel aspect changes from 16:15 to 64:45 near frame" in probe(tmp_path / "both.ts").reason
    (tmp_path / "twice.ts").write_bytes(parts[1] * 2)
    assert "aspect" not in probe(tmp_path / "twice.ts").reason
