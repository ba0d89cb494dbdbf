"""Say what a file is that no reader of images recognises, and what to type. Nothing of it is decoded."""

from typing import IO

from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from walt_pl.media.extensions import NOT_READ
from walt_pl.media.media_file import Media
from walt_pl.media.pixel_modes import unknown_range
from walt_pl.media.types import MediaError

_BEGINNINGS = (
    (b"GIF8", "a GIF", "gif"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000", "jp2"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000", "jp2"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL", "jxl"),
    (b"\xff\x0a", "a JPEG XL", "jxl"),
    (b"8BPS", "a PSD of Photoshop", "psd"),
    (b"%!PS", "an EPS (PostScript)", "eps"),
    (b"\xc5\xd0\xd3\xc6", "an EPS (PostScript)", "eps"),
)
"""First bytes, the kind of file that has them, and its ending in `NOT_READ`."""
_BRANDS = (
    ((b"avif", b"avis"), "an AVIF", "avif"),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC or HEIF", "heic"),
)
"""Brands in the first box (ISO/IEC 23008-12, annex B). An AVIF may have those of both."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG = 43
"""Third byte of a BigTIFF, whose header is longer."""
_FLOAT, _SIGNED = 3, 2
_READ = "wanted a JPEG, PNG, WebP, BMP or TIFF"
_START = 4096


def explain_unread(media: Media) -> MediaError:
    """Return the error for a file that Pillow does not identify: what its first bytes say that it is, and what to type.

    Raises:
        Exception: It is a TIFF, and damaged. Pillow raises errors of many kinds for it.
    """
    with media.open() as file:
        start = file.read(_START)
        if start.startswith(_TIFF):
            return _explain_tiff(media, file, start)
    for beginning, kind, ending in _BEGINNINGS:
        if start.startswith(beginning):
            return _not_read(media, kind, NOT_READ[ending])
    if start[4:8] == b"ftyp":
        box = start[8 : int.from_bytes(start[:4], "big")]
        brands = {box[place : place + 4] for place in range(0, len(box), 4)}
        for names, kind, ending in _BRANDS:
            if brands.intersection(names):
                return _not_read(media, kind, NOT_READ[ending])
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return MediaError(f"{media}: not an image that can be read: found a web page, {_READ}; download the image again")
    return MediaError(f"{media}: not an image that can be read: its first bytes are those of no known kind, or damaged, {_READ}")


def _not_read(media: Media, kind: str, command: str) -> MediaError:
    return MediaError(f"{media}: not an image that can be read: found {kind}, {_READ}; convert it, for example: {command}")


def _explain_tiff(media: Media, file: IO[bytes], start: bytes) -> MediaError:
    """Return the error for a TIFF that Pillow does not identify."""
    tags = ImageFileDirectory_v2(start[: 16 if start[2] == _BIG else 8])
    file.seek(tags.next)
    tags.load(file)
    bits, numbers = tags.get(Base.BitsPerSample, ()), tags.get(Base.SampleFormat, ())
    if _FLOAT in numbers:
        return unknown_range(media, "floating point numbers")
    if _SIGNED in numbers or max(bits, default=0) > 16:
        return unknown_range(media, f"numbers of {max(bits)} bits" + " with a sign" * (_SIGNED in numbers))
    depth = f", with {len(bits)} x {max(bits)} bits a pixel" if bits else ", or damaged"
    kind = f"a TIFF of a kind that Pillow does not know{depth}"
    return _not_read(media, kind, "magick a.tif -depth 8 a.png")
