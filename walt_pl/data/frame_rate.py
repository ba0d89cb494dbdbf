"""Frames a second: of the clips that a model is trained on, and of those that it makes."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from walt_pl.data.index import IndexEntries
from walt_pl.data.transforms import ClipTransform

DEFAULT_FPS = 8.0
"""Rate of clips of a model whose rate is not known: that of the paper's text to video."""
TOLERANCE = 0.005
"""Relative difference up to which two rates are the same: containers round times, and 29.97 is called 30."""


def same_rate(one: float, other: float) -> bool:
    """Return whether two rates are the same, to rounding."""
    return math.isclose(one, other, rel_tol=TOLERANCE)


def trained_rate(videos: IndexEntries, positions: NDArray[np.int64], clip_transform: ClipTransform) -> float | None:
    """Return the frames a second of the clips that are taken of some videos.

    Args:
        videos: Of the index.
        positions: Places in it of the videos that are used, at least one.
        clip_transform: Which frames are taken of each.

    Returns:
        `clip_transform.fps` where it is set; else the rate that all the videos share, divided by the stride. None where the rates differ by
        more than rounding, and where one is unknown or varies within its file.
    """
    if clip_transform.fps is not None:
        return clip_transform.fps
    rates = videos.column("fps")[positions]
    if not rates.min() > 0 or videos.column("variable_rate")[positions].any() or not same_rate(float(rates.min()), float(rates.max())):
        return None
    # The index has float32; what was 24000 / 1001 is so again, and `write_video` writes the same fraction.
    return float(Fraction(float(np.median(rates)) / clip_transform.stride).limit_denominator(1001))
