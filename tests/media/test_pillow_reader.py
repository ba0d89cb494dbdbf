"""Images of several frames or pages."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_files import COLOUR, png
from walt_pl.media.ffmpeg_filters import OVER_WHITE
from walt_pl.media.reading import read_image
from walt_pl.media.types import MediaError

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def save_frames(path: Path, count: int = 3, **options: object) -> Path:
    """Write an image with a frame, or a page, of each colour."""
    frames = [Image.new("RGB", (48, 32), colour) for colour in COLOURS[:count]]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(("name", "found"), [("a.png", "PNG"), ("a.webp", "WEBP")])
def test_read_image_refuses_an_animated_image_with_what_to_type(name: str, found: str, tmp_path: Path) -> None:
    path = save_frames(tmp_path / name)
    with pytest.raises(MediaError, match=f"^{path}: animated: a {found} of 3 frames, wanted one; make a video of it, e.g. .*ffmpeg"):
        read_image(path)


def test_read_image_names_commands_that_read_the_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MediaError, match=rf"e\.g\. ffmpeg -f apng -i a\.png {re.escape(OVER_WHITE)} a\.mp4$"):
        read_image(save_frames(Path("a.png"), duration=[100, 300, 200]))
    assert times("a.png", "apng") == [0, 100, 400]
    with pytest.raises(MediaError) as error:
        read_image(save_frames(Path("a.webp"), duration=[500, 100, 300]))
    python, ffmpeg = str(error.value).partition("e.g. ")[2].split(" && ")
    assert ffmpeg == f"ffmpeg -i a.gif {OVER_WHITE} a.mp4"
    subprocess.run([sys.executable, "-c", python.removeprefix('python -c "').removesuffix('"')], check=True)
    assert times("a.gif", "gif") == [0, 500, 600]


def times(name: str, container_format: str) -> list[int]:
    """Return the times of the frames in milliseconds, as FFmpeg reads them."""
    with av.open(name, format=container_format) as container:
        frames = container.decode(video=0)
        return [round(1000 * float(frame.pts * frame.time_base)) for frame in frames if frame.pts is not None and frame.time_base]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff", "a.jpg"])
def test_read_image_reads_the_one_frame_or_the_first_page(name: str, tmp_path: Path) -> None:
    several = name in ("a.tiff", "a.jpg")  # phones write previews and depths behind a photograph
    options = {"a.webp": {"lossless": True}, "a.jpg": {"format": "MPO", "quality": 100}}.get(name, {})
    path = save_frames(tmp_path / name, 3 if several else 1, **options)
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == (3 if several else 1)
    assert np.abs(read_image(path).astype(int) - COLOURS[0]).max() <= 2


def test_read_image_reads_an_apng_of_one_frame(tmp_path: Path) -> None:
    pixels = np.tile(np.uint8(COLOURS[0]), (4, 6, 1))
    frame = struct.pack(">IIIIIHHBB", 0, 6, 4, 0, 0, 1, 10, 0, 0)
    (tmp_path / "a.png").write_bytes(png(pixels, 8, COLOUR, acTL=struct.pack(">II", 1, 0), fcTL=frame))
    assert (read_image(tmp_path / "a.png")[0] == pixels).all()
