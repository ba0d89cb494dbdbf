"""Write videos, images and GIFs, and compare what comes back."""

from __future__ import annotations

import errno
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import (
    counting_clip,
)
from walt_pl.media.reading import read_image, read_video
from walt_pl.media.types import MediaError
from walt_pl.media.writing import gif_bytes, write_gif, write_image, write_video


def test_write_video_is_read_back(path: Path) -> None:
    clip = read_video(path, 100)
    assert clip.dtype == np.uint8 and clip.shape == (100, 64, 96, 3)
    assert np.abs(clip.astype(int) - counting_clip(100)).mean() < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p") and stream.average_rate == 8


def test_write_video_same_frames_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "again.mp4", counting_clip(100), fps=8)
    assert (tmp_path / "again.mp4").read_bytes() == path.read_bytes()


def test_write_video_keeps_fractional_rates(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", counting_clip(3), fps=24000 / 1001)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_write_video_refuses_odd_sizes_and_floats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be even, got 63 x 96"):
        write_video(tmp_path / "a.mp4", counting_clip(2, height=63), fps=8)
    with pytest.raises(ValueError, match=r"wanted uint8 frames \[t h w 3\], got float64"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 64, 64, 3)), fps=8)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_write_video_on_a_full_disk_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, *args: object) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("walt_pl.media.writing._encode", full)
    with pytest.raises(MediaError, match="cannot be written: No space left on device"):
        write_video(path, counting_clip(4), fps=8)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def test_write_image_is_read_back_as_a_one_frame_video(tmp_path: Path) -> None:
    frame = counting_clip(4, 31, 40)[3]
    for name, error in (("a.png", 0), ("a.jpg", 8)):
        write_image(tmp_path / name, frame)
        back = read_image(tmp_path / name)
        assert back.shape == (1, 31, 40, 3) and back.dtype == np.uint8
        assert np.abs(back[0].astype(int) - frame).mean() <= error
    with pytest.raises(ValueError, match=r'must end in \.png or \.jpg, got "\.bmp"'):
        write_image(tmp_path / "a.bmp", frame)


def test_write_gif_plays_all_frames_in_a_loop(tmp_path: Path) -> None:
    clip = counting_clip(5)
    write_gif(tmp_path / "a.gif", clip, fps=8)
    assert (tmp_path / "a.gif").read_bytes() == gif_bytes(clip, 8)
    with Image.open(io.BytesIO(gif_bytes(clip, 8))) as picture:
        assert (picture.n_frames, picture.info["loop"], picture.size) == (5, 0, (96, 64))  # type: ignore[attr-defined]
        assert picture.info["duration"] in (120, 125, 130) and "comment" not in picture.info


def test_write_gif_holds_its_captions(tmp_path: Path) -> None:
    captions = ["a red circle", "ein grüner Balken"]
    write_gif(tmp_path / "a.gif", counting_clip(5), 8, captions)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.info["comment"].decode().split("\n") == captions
