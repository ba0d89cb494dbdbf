"""Images that their EXIF data turn: in every mode and orientation, from a file and from a tar shard, compared with numpy."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.image_files import tiff
from walt_pl.media.media_file import Media
from walt_pl.media.pillow_reader import read_pillow

ORIENTATION = 0x112
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""Orientation -> what makes the stored picture upright."""
MODES = ["1", "L", "P", "LA", "I;16", "RGB", "RGBA", "CMYK"]
LEVELS = np.add.outer(3 * np.arange(24), np.arange(64)).astype(np.uint8)
"""A picture wider than high, without symmetry."""


def picture(mode: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Return a picture of a mode, and its red, green and blue over white."""
    if mode == "I;16":
        return Image.fromarray(LEVELS.astype(np.uint16) * 257), np.repeat(LEVELS[..., None], 3, -1)
    colours = np.stack([LEVELS, LEVELS[::-1], 255 - LEVELS, np.where(LEVELS > 90, 255, 0)], -1).astype(np.uint8)
    made = Image.fromarray(colours).convert("L" if mode == "P" else mode)
    if mode == "P":
        made.putpalette([level for value in range(256) for level in (value, 255 - value, value // 2)])
    if mode in ("LA", "RGBA"):
        white = Image.new("RGBA", made.size, "white")
        white.alpha_composite(made.convert("RGBA"))
        return made, np.array(white.convert("RGB"))
    return made, np.array(made.convert("RGB"))


def test_read_pillow_turns_tiffs_of_big_endian_grey(tmp_path: Path) -> None:
    for orientation, turn in TURNS.items():
        (tmp_path / "a.tif").write_bytes(tiff(LEVELS.astype(np.uint16) * 257, 16, 1, ">", orientation=orientation))
        found = read_pillow(Media(tmp_path / "a.tif"))[0, ..., 0]
        assert np.array_equal(found, turn(LEVELS)), orientation


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", MODES)
def test_read_pillow_turns_tiffs_of_each_mode_and_orientation(mode: str, compression: str | None, tmp_path: Path) -> None:
    stored, upright = picture(mode)
    for orientation, turn in TURNS.items():
        path, shard = tmp_path / f"{orientation}.tif", tmp_path / "a.tar"
        stored.save(path, tiffinfo={ORIENTATION: orientation}, compression=compression)
        with tarfile.open(shard, "w") as tar:
            tar.add(path, "a.tif")
        with tarfile.open(shard) as tar:
            member = tar.getmembers()[0]
        for media in (Media(path), Media(shard, member.offset_data, member.size)):
            found = read_pillow(media)[0]
            assert found.shape == turn(upright).shape, (orientation, media)
            assert np.abs(found.astype(int) - turn(upright)).max() <= 1, (orientation, media)
