"""Files that are no image that is read: the error says what they are, and what to type."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tests.helpers.image_files import tiff
from walt_pl.media.extensions import IMAGES, NOT_READ
from walt_pl.media.media_file import Media
from walt_pl.media.pillow_reader import read_pillow
from walt_pl.media.probing import probe_picture
from walt_pl.media.reading import read_image
from walt_pl.media.types import MediaError

WANTED = ", wanted a JPEG, PNG, WebP, BMP or TIFF; "


def written(image_format: str) -> bytes:
    """Return an image as Pillow writes it."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 0, 0)).save(file, image_format)
    return file.getvalue()


def box(*brands: bytes) -> bytes:
    """Return the first box of a file of boxes: size, "ftyp", brand, version, other brands."""
    rest = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(rest) + 4).to_bytes(4, "big") + rest + b"\0\0\0\x08free"


def big_tiff(tags: dict[int, int]) -> bytes:
    """Return a BigTIFF without pixels."""
    entries = [struct.pack("<HHQHHHxx", tag, 3, 3, *[value] * 3) for tag, value in tags.items()]
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries)) + b"".join(entries) + bytes(8)


KINDS = {
    "GIF": (written("GIF"), "a GIF", NOT_READ["gif"]),
    "JPEG 2000": (written("JPEG2000") if features.check("jpg_2000") else b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000", "magick a.jp2 a.png"),
    "JPEG 2000 without boxes": (b"\xff\x4f\xff\x51\0\x2f", "a JPEG 2000", "magick a.jp2 a.png"),
    "AVIF": (written("AVIF") if features.check("avif") else box(b"avif"), "an AVIF", "magick a.avif a.png"),
    "AVIF of a camera": (box(b"mif1", b"mif1", b"avif", b"miaf"), "an AVIF", "magick a.avif a.png"),
    "HEIC of an iPhone": (box(b"heic", b"mif1", b"heic"), "a HEIC or HEIF", "magick a.heic a.png"),
    "HEIF": (box(b"mif1", b"mif1", b"heix"), "a HEIC or HEIF", "magick a.heic a.png"),
    "JPEG XL": (b"\xff\x0a\x3f\0", "a JPEG XL", "magick a.jxl a.png"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL", "magick a.jxl a.png"),
    "PSD": (b"8BPS\0\1" + bytes(20), "a PSD of Photoshop", "magick 'a.psd[0]' a.png"),
    "EPS": (written("EPS"), "an EPS (PostScript)", "magick -density 150 a.eps a.png"),
    "EPS with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(20), "an EPS (PostScript)", "magick -density 150 a.eps a.png"),
    "TIFF LA of 16 bits": (
        tiff(np.full((4, 6, 2), 65535, np.uint16), 16, 1, extra=2),
        "a TIFF of a kind that Pillow does not know, with 2 x 16 bits a pixel",
        "magick a.tif -depth 8 a.png",
    ),
    "TIFF of 5 bands": (
        tiff(np.full((4, 6, 5), 65535, np.uint16), 16, 1, ">"),
        "a TIFF of a kind that Pillow does not know, with 5 x 16 bits a pixel",
        "magick a.tif -depth 8 a.png",
    ),
    "TIFF without depth": (
        b"MM\0*\0\0\0\x08" + bytes(6),
        "a TIFF of a kind that Pillow does not know, or damaged",
        "magick a.tif -depth 8 a.png",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_read_image_says_what_a_file_is_that_is_not_read(kind: str, tmp_path: Path) -> None:
    content, found, command = KINDS[kind]
    reason = f"not an image that can be read: found {found}{WANTED}convert it, for example: {command}"
    for name in ("a.png", f"a.{kind.split()[0].lower()}"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as error:
            read_image(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {reason}"
    assert probe_picture(tmp_path / "a.png").reason == reason, "the doctor says it"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmembers()[0]
    with pytest.raises(MediaError, match=r"a\.tar, member at byte \d+: not an image that can be read: found a"):
        read_pillow(Media(tmp_path / "a.tar", member.offset_data, member.size))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tiff(np.full((4, 6, 3), 0.5, np.float32), 32, 2, sample_format=3), "floating point numbers"),
        (tiff(np.full((4, 6, 2), 0.5, np.float32), 32, 1, ">", extra=2, sample_format=3), "floating point numbers"),
        (tiff(np.full((4, 6, 3), 1 << 30, np.uint32), 32, 2, sample_format=1), "numbers of 32 bits"),
        (big_tiff({258: 32, 339: 3}), "floating point numbers"),
        (tiff(np.full((4, 6, 3), -1, np.int16), 16, 2, sample_format=2), "numbers of 16 bits with a sign"),
    ],
)
def test_read_image_refuses_colours_of_unknown_range_as_it_does_grey_ones(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(MediaError, match=f"a.tif: unknown range: found {found}, wanted 8 or 16 bits .* magick a.tif -auto-level -depth 16"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html></html>", b"\n<html><body>404"])
def test_read_image_says_that_a_web_page_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.jpg: not an image that can be read: found a web page, .*; download the image again$"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data|Tag data larger than file")
@pytest.mark.parametrize("kind", ["noise", "zeros", "no directory", "cut", "png", "absurd counts", "boxes"])
def test_read_image_of_damaged_beginnings_is_a_media_error(kind: str, tmp_path: Path) -> None:
    whole = tiff(np.full((4, 6, 2), 65535, np.uint16), 16, 1, extra=2)
    content = {
        "noise": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(100),
        "no directory": b"II*\0\xff\xff\xff\x7f",
        "cut": whole[:-20],
        "png": b"\x89PNG\r\n\x1a\n" + bytes(30),
        "absurd counts": whole[:-40].replace(b"\x02\x01\x03\0\x02\0\0\0", b"\x02\x01\x03\0\xff\xff\xff\xff"),
        "boxes": b"\xff\xff\xff\xffftyp" + bytes(5000),
    }[kind]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.png: not an image that can be read: "):
        read_image(tmp_path / "a.png")


def test_not_read_names_no_ending_that_is_read() -> None:
    assert not IMAGES & NOT_READ.keys()
