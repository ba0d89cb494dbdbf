"""Pixels that are not square: the size at which a picture is seen.

Tapes, DVDs and broadcasts store 720 columns for pictures of 4:3 and 16:9. The sample aspect ratio (SAR) says how wide a pixel is.
"""

from fractions import Fraction
from typing import Any

from walt_pl.media.types import Size

SQUARE = Fraction(1)
_LARGEST = 10
_NEARLY = Fraction(1, 200)


def pixel_aspect(stream: Any) -> Fraction:
    """Return the width of a pixel of PyAV's video stream (or of its codec), divided by its height.

    The container's ratio beats the codec's, as in FFmpeg's `av_guess_sample_aspect_ratio`. Some ratios count as square:

    - none, 0:1, and ratios beyond 1:10 and 10:1. No camera writes them, and a tiny file would ask for much memory.
    - ratios within half a percent of 1. Encoders write 1280:1281 where they round a size. Scaling for one column would only blur.
    """
    ratio = stream.sample_aspect_ratio
    if not ratio or not Fraction(1, _LARGEST) <= ratio <= _LARGEST or abs(ratio - 1) <= _NEARLY:
        return SQUARE
    return Fraction(ratio)


def display_size(height: int, width: int, aspect: Fraction) -> Size:
    """Return rows and columns of a stored picture with square pixels.

    Wide pixels give more columns, and tall pixels give more rows. So no stored row or column is thrown away.

    Args:
        height: Stored rows.
        width: Stored columns.
        aspect: Width of a pixel divided by its height.
    """
    return (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
