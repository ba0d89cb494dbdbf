"""Decoders and encoders."""

from __future__ import annotations

import errno
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import counting_clip, encode, numbers
from walt_pl.media.video import (
    MediaError,
    gif_bytes,
    read_image,
    read_last_frames,
    read_video,
    write_gif,
    write_image,
    write_video,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", counting_clip(100), fps=8)
    return tmp_path / "clip.mp4"


def test_written_clip_comes_back(path: Path) -> None:
    clip = read_video(path, 100)
    assert clip.dtype == np.uint8 and clip.shape == (100, 64, 96, 3)
    assert np.abs(clip.astype(int) - counting_clip(100)).mean() < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p") and stream.average_rate == 8


@pytest.mark.parametrize("start", [0, 1, 30, 47, 48, 49, 83])
def test_start_is_exact(path: Path, start: int) -> None:
    assert numbers(read_video(path, 17, start)) == list(range(start, start + 17))


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
        ("libx265", {"x265-params": "keyint=12:log-level=0"}),
    ],
)
def test_open_gops_give_the_right_frames_after_a_seek(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    encode(tmp_path / "open.mp4", counting_clip(80), codec, **options)
    for start in (0, 10, 11, 12, 13, 24, 35, 61):
        assert numbers(read_video(tmp_path / "open.mp4", 17, start)) == list(range(start, start + 17))


def test_last_frames_are_the_last_of_any_file(path: Path, tmp_path: Path) -> None:
    assert numbers(read_last_frames(path, 5)) == list(range(95, 100))
    assert numbers(read_last_frames(path, 200)) == list(range(100)), "all of a shorter one"
    encode(tmp_path / "open.mp4", counting_clip(30), "libx264", **{"x264-params": "open-gop=1:keyint=12:bframes=3"})
    assert numbers(read_last_frames(tmp_path / "open.mp4", 5)) == list(range(25, 30))


@pytest.mark.parametrize(
    ("rate", "fps", "taken"),
    [
        (8, 8.0, [95, 96, 97, 98, 99]),
        (16, 8.0, [91, 93, 95, 97, 99]),
        (30, 8.0, [84, 88, 91, 95, 99]),  # at 84, 87.75, 91.5, 95.25, 99; a frame counts from 0.3 of an interval before its time on
        (4, 8.0, [97, 97, 98, 98, 99]),
        (30, 30000 / 1001, [95, 96, 97, 98, 99]),
    ],
)
def test_last_frames_at_a_rate_are_those_shown_at_equal_distances_before_the_last(
    tmp_path: Path, rate: int, fps: float, taken: list[int]
) -> None:
    write_video(tmp_path / "clip.mp4", counting_clip(100), rate)
    assert numbers(read_last_frames(tmp_path / "clip.mp4", 5, fps)) == taken


def test_last_frames_at_a_rate_are_fewer_where_the_video_is_shorter(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", counting_clip(7), 16)
    assert numbers(read_last_frames(tmp_path / "clip.mp4", 5, 8.0)) == [0, 2, 4, 6]


@pytest.mark.parametrize(("frames", "start", "found"), [(101, 0, 100), (17, 90, 10), (1, 500, 0)])
def test_too_short_is_an_error_that_counts(path: Path, frames: int, start: int, found: int) -> None:
    with pytest.raises(MediaError, match=f"found {found} frames from frame {start} on, wanted {frames}") as error:
        read_video(path, frames, start)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("content", [b"", b"just a few words\n" * 50, None], ids=["empty", "text", "truncated"])
def test_broken_files_are_media_errors(path: Path, content: bytes | None, start: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(MediaError) as error:
        read_video(path, 17, start)
    assert str(error.value).startswith(str(path))


def test_truncated_mkv_is_shorter_and_says_so(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mkv", counting_clip(100), "libx264")
    content = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "clip.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match="wanted 100"):
        read_video(tmp_path / "clip.mkv", 100)


def test_missing_files_and_folders_are_media_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(MediaError, match="no such file"):
            read_video(path, 17)
        with pytest.raises(MediaError, match="no such file"):
            read_image(path)


def test_same_frames_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "again.mp4", counting_clip(100), fps=8)
    assert (tmp_path / "again.mp4").read_bytes() == path.read_bytes()


def test_fractional_rates_are_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", counting_clip(3), fps=24000 / 1001)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_odd_sizes_and_floats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be even, got 63 x 96"):
        write_video(tmp_path / "a.mp4", counting_clip(2, height=63), fps=8)
    with pytest.raises(ValueError, match=r"wanted uint8 frames \[t h w 3\], got float64"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 64, 64, 3)), fps=8)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, *args: object) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("walt_pl.media.video._encode", full)
    with pytest.raises(MediaError, match="cannot be written: No space left on device"):
        write_video(path, counting_clip(4), fps=8)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def test_image_is_a_one_frame_video(tmp_path: Path) -> None:
    frame = counting_clip(4, 31, 40)[3]
    for name, error in (("a.png", 0), ("a.jpg", 8)):
        write_image(tmp_path / name, frame)
        back = read_image(tmp_path / name)
        assert back.shape == (1, 31, 40, 3) and back.dtype == np.uint8
        assert np.abs(back[0].astype(int) - frame).mean() <= error
    with pytest.raises(ValueError, match=r'must end in \.png or \.jpg, got "\.bmp"'):
        write_image(tmp_path / "a.bmp", frame)


def test_exif_turns_the_image(tmp_path: Path) -> None:
    picture = Image.fromarray(counting_clip(1, 20, 40)[0])
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (1, 40, 20, 3)


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (8, 6)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (1, 6, 8, 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_broken_images_are_media_errors(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    write_image(tmp_path / name, rng.integers(0, 255, (64, 64, 3), np.uint8))
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"words\n" * 20, whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as error:
            read_image(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))


def test_gif_plays_all_frames_for_ever(tmp_path: Path) -> None:
    clip = counting_clip(5)
    write_gif(tmp_path / "a.gif", clip, fps=8)
    assert (tmp_path / "a.gif").read_bytes() == gif_bytes(clip, 8)
    with Image.open(io.BytesIO(gif_bytes(clip, 8))) as picture:
        assert (picture.n_frames, picture.info["loop"], picture.size) == (5, 0, (96, 64))  # type: ignore[attr-defined]
        assert picture.info["duration"] in (120, 125, 130)
