"""Read any file by its path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import (
    counting_clip,
    encode,
    numbers,
)
from walt_pl.media.reading import read_image, read_last_frames, read_video
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_image, write_video


@pytest.mark.parametrize("start", [0, 1, 30, 47, 48, 49, 83])
def test_read_video_start_is_exact(path: Path, start: int) -> None:
    assert numbers(read_video(path, 17, start)) == list(range(start, start + 17))


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
        ("libx265", {"x265-params": "keyint=12:log-level=0"}),
    ],
)
def test_read_video_of_open_gops_gives_the_right_frames_after_a_seek(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    encode(tmp_path / "open.mp4", counting_clip(80), codec, **options)
    for start in (0, 10, 11, 12, 13, 24, 35, 61):
        assert numbers(read_video(tmp_path / "open.mp4", 17, start)) == list(range(start, start + 17))


def test_read_last_frames_gives_the_last_of_any_file(path: Path, tmp_path: Path) -> None:
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
def test_read_last_frames_at_fps_are_evenly_spaced_before_the_last(tmp_path: Path, rate: int, fps: float, taken: list[int]) -> None:
    write_video(tmp_path / "clip.mp4", counting_clip(100), rate)
    assert numbers(read_last_frames(tmp_path / "clip.mp4", 5, fps)) == taken


def test_read_last_frames_at_fps_are_fewer_where_the_video_is_shorter(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", counting_clip(7), 16)
    assert numbers(read_last_frames(tmp_path / "clip.mp4", 5, 8.0)) == [0, 2, 4, 6]


@pytest.mark.parametrize(("frames", "start", "found"), [(101, 0, 100), (17, 90, 10), (1, 500, 0)])
def test_read_video_too_short_raises_with_the_frames_found(path: Path, frames: int, start: int, found: int) -> None:
    with pytest.raises(MediaError, match=f"found {found} frames from frame {start} on, wanted {frames}") as error:
        read_video(path, frames, start)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("content", [b"", b"just a few words\n" * 50, None], ids=["empty", "text", "truncated"])
def test_read_video_of_broken_files_raises_media_error(path: Path, content: bytes | None, start: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(MediaError) as error:
        read_video(path, 17, start)
    assert str(error.value).startswith(str(path))


def test_read_video_of_a_truncated_mkv_raises_media_error(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mkv", counting_clip(100), "libx264")
    content = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "clip.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match="wanted 100"):
        read_video(tmp_path / "clip.mkv", 100)


def test_read_video_and_read_image_of_missing_files_raise_media_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(MediaError, match="no such file"):
            read_video(path, 17)
        with pytest.raises(MediaError, match="no such file"):
            read_image(path)


def test_read_image_applies_the_exif_rotation(tmp_path: Path) -> None:
    picture = Image.fromarray(counting_clip(1, 20, 40)[0])
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (1, 40, 20, 3)


def test_read_image_converts_grey_and_palette_to_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (8, 6)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (1, 6, 8, 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_read_image_of_broken_files_raises_media_error(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    write_image(tmp_path / name, rng.integers(0, 255, (64, 64, 3), np.uint8))
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"words\n" * 20, whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as error:
            read_image(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
