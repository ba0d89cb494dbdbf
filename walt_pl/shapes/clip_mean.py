"""Figures of the embedded set's table that are means over clips."""

from __future__ import annotations

from typing import Self

from torch import Tensor


class ClipMean(float):
    """Mean of a figure over clips. It keeps the figure of each clip, for the error bar.

    Args:
        clips: figure of each clip, float [b].
    """

    clips: Tensor

    def __new__(cls, clips: Tensor) -> Self:
        mean = super().__new__(cls, float(clips.mean()))
        mean.clips = clips
        return mean
