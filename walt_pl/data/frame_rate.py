"""Frame rates of the clips that a model is trained on, and of those that it makes."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from walt_pl.data.index import IndexEntries
from walt_pl.data.transforms import ClipTransform

DEFAULT_FPS = 8.0
"""Frames per second for a model whose rate is not known: the rate of the paper's text-to-video model."""
TOLERANCE = 0.005
"""Relative difference up to which two rates count as equal: containers round times, and 29.97 is called 30."""


def same_rate(one: float, other: float) -> bool:
    """Return whether two rates are equal, to rounding (`TOLERANCE`)."""
    return math.isclose(one, other, rel_tol=TOLERANCE)


def trained_rate(videos: IndexEntries, positions: NDArray[np.int64], clip_transform: ClipTransform) -> float | None:
    """Return the frames per second of the clips that a model is trained on.

    Args:
        videos: Videos of the index.
        positions: Positions in `videos` of those that are used, at least one.
        clip_transform: Says which frames are read of each video.

    Returns:
        `clip_transform.fps` where it is set. Otherwise the rate that all videos share, divided by the stride. None where the rates
        differ by more than rounding, and where a rate is unknown or varies within its file.
    """
    if clip_transform.fps is not None:
        return clip_transform.fps
    rates = videos.column("fps")[positions]
    if not rates.min() > 0 or videos.column("variable_rate")[positions].any() or not same_rate(float(rates.min()), float(rates.max())):
        return None
    # The index has float32. This restores a rate such as 24000 / 1001, and `write_video` writes the same fraction.
    return float(Fraction(float(np.median(rates)) / clip_transform.stride).limit_denominator(1001))
