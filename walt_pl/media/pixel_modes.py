"""Turn an image of any mode of Pillow into RGB: scale its levels, and show the background where it is transparent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

from walt_pl.media.transparency import composite
from walt_pl.media.types import Frames, MediaError

UNKNOWN_RANGE = "unknown range"
"""First words of the error for pixel values whose black and white no rule says."""
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_LEVELS_8 = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA", "RGBA", "RGBa")
_DEPTH_STEPS = {"L;2": 85, "L;4": 17}
"""Pillow scales the pixels of a shallow PNG by this number, and not its transparent level."""
_SIGNED = 2
_WHITE_IS_ZERO = 0


@dataclass(frozen=True)
class PixelFormat:
    """The meaning of an image's pixel values, as far as the mode does not tell it."""

    white: int = 255
    """Largest level."""
    inverted: bool = False
    """True if level 0 is white and `white` is black."""
    transparent: tuple[int, ...] = ()
    """Level, or red, green and blue, of the pixels that are transparent; empty where no colour is."""
    halved: bool = False
    """True if the file has 16 bits of each colour, of which Pillow keeps the upper 8."""

    @classmethod
    def of(cls, name: object, picture: Image.Image) -> PixelFormat:
        """Return the format of an image that is open and not decoded yet.

        Args:
            name: File or member, for the message.
            picture: The image.

        Raises:
            MediaError: The range of its values is unknown.
        """
        tags = getattr(picture, "tag_v2", {})  # of a TIFF
        bits = tags.get(Base.BitsPerSample, (16,))[0]
        tiles = getattr(picture, "tile", None)  # of an image that was opened
        raw_mode = tiles[0][3] if tiles else ""
        _check_range(name, picture, bits, _SIGNED in tags.get(Base.SampleFormat, ()))
        grey_16 = picture.mode in (*_GREY_16, "I")
        found = picture.info.get("transparency") if picture.mode != "P" else None
        colour = () if found is None else (found,) if isinstance(found, int) else tuple(found)
        steps = _DEPTH_STEPS.get(raw_mode, 1) if isinstance(raw_mode, str) else 1
        return cls(
            (1 << bits) - 1 if grey_16 else 255,
            grey_16 and tags.get(Base.PhotometricInterpretation) == _WHITE_IS_ZERO,  # Pillow inverts the other modes
            tuple(level * steps for level in colour),
            raw_mode == "RGB;16B",
        )


def _check_range(name: object, picture: Image.Image, bits: int, signed: bool) -> None:
    if picture.mode == "F":
        found = "floating point numbers"
    elif signed:
        found = f"numbers of {bits} bits with a sign"
    elif picture.mode == "I" and picture.format != "PNG":  # a PNG has at most 16 bits; some versions of Pillow open those as I
        found = "numbers of 32 bits"
    elif picture.mode not in (*_GREY_16, *_LEVELS_8, "I"):
        found = f"pixels of the mode {picture.mode}"
    else:
        return
    raise unknown_range(name, found)


def unknown_range(name: object, found: str) -> MediaError:
    """Return the error for pixel values without a known black and white, with what to type.

    Args:
        name: File or member.
        found: Kind of the numbers.
    """
    return MediaError(
        f"{name}: {UNKNOWN_RANGE}: found {found}, wanted 8 or 16 bits without a sign, which have a black and a white; scale them, for "
        "example: magick a.tif -auto-level -depth 16 a.png"
    )


def to_rgb(picture: Image.Image, pixels: PixelFormat, background: tuple[int, int, int], lower: Image.Image | None = None) -> Frames:
    """Return an image as uint8 [h w 3], over the background where it is transparent.

    Args:
        picture: The image.
        pixels: Format of its pixels.
        background: Red, green and blue, 0..255.
        lower: The lower 8 bits of an image of which Pillow keeps the upper 8; needed where such an image has a transparent colour.
    """
    opacity = _opacity(picture, pixels, lower) if pixels.transparent else None
    if picture.mode in (*_GREY_16, "I"):
        picture = Image.fromarray(_scale(np.asarray(picture), pixels))
    elif opacity is None and picture.has_transparency_data:
        if picture.mode in ("La", "RGBa"):
            picture = picture.convert(picture.mode.upper())
        picture = picture.convert("RGBA")
        opacity = picture.getchannel("A")
    colours = picture.convert("RGB")
    return np.array(colours) if opacity is None else composite(colours, opacity, background)


def _scale(levels: NDArray[np.generic], pixels: PixelFormat) -> NDArray[np.uint8]:
    """Return levels 0..`white` as 0..255, rounded to the nearest."""
    wide = levels.astype(np.uint32)
    wide *= 255
    wide += pixels.white // 2
    wide //= pixels.white
    scaled = wide.astype(np.uint8)
    return 255 - scaled if pixels.inverted else scaled


def _opacity(picture: Image.Image, pixels: PixelFormat, lower: Image.Image | None) -> Image.Image:
    """Return the mask of an image with a transparent colour: 0 where a pixel has that colour, 255 elsewhere."""
    found = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    wanted = np.array(pixels.transparent if found.ndim == 3 else pixels.transparent[0])
    same = found == wanted
    if lower is not None:
        same = (found == wanted >> 8) & (np.asarray(lower) == wanted & 255)
    same = same.all(-1) if found.ndim == 3 else same
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))
