"""Outline of the embedded set's objects: overlap with an ideal shape, and steadiness from frame to frame.

The scorer names the nearest shape, and a wobbling outline still has the nearest shape. These figures are finer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walt_pl.shapes.clip_mean import ClipMean
from walt_pl.shapes.dataset import distance, stepwise_time
from walt_pl.shapes.scorer import Array, find_object, locate, overlap_by_shape, to_pixels, unit_shape

_CLOSE = 0.05
"""Shapes whose overlap before the fit is this close to the best one are fitted, too."""
_STEPS = (0.08, 0.04, 0.02, 0.01, 0.005)
"""Steps of the search, in radii. The last one is 0.04 pixels of the smallest object at 32 pixels."""


@dataclass(frozen=True)
class Outline:
    """The ideal shape that fits a clip's object best, one kind for the whole clip."""

    shape: str
    centre: Array
    """Centre (x, y) of the bounding box in each frame, in pixels, [t 2]."""
    radius: Array
    """Radius in each frame, in pixels, [t]."""
    overlap: Array
    """Intersection over union of each frame's object with the shape, 0..1, [t]; 0 in a frame without an object."""

    @property
    def iou(self) -> float:
        """Mean of the overlap over the frames."""
        return float(self.overlap.mean())

    @property
    def steadiness(self) -> float:
        """Spread of centre and radius around their straight lines, in pixels: root of the mean squared distance, 0 for a steady object.

        The radius is linear in time, and the centre in `stepwise_time`, in which objects of the set move.
        """
        time = np.linspace(0, 1, len(self.radius))
        residuals = [_residual(self.radius, time), *(_residual(axis, stepwise_time(time)) for axis in self.centre.T)]
        return float(np.sqrt(sum((residual**2).mean() for residual in residuals)))


def fit_outline(clip: Tensor) -> Outline:
    """Fit an ideal shape to the object of every frame.

    Args:
        clip: float [3 t h w] in -1..1 with two frames or more, of any size.

    Raises:
        ValueError: the clip has another shape.
    """
    _, matte = find_object(to_pixels(clip))
    masks = matte > 0.5
    places = locate(masks)
    before = overlap_by_shape(masks, places)
    near = [shape for shape, value in before.items() if value >= max(before.values()) - _CLOSE]
    return max((_fit(shape, masks, places) for shape in near), key=lambda outline: outline.iou)


def measure_outlines(clips: Tensor) -> dict[str, ClipMean]:
    """Return `iou` and `steadiness` (in pixels) of clips [b 3 t h w] in -1..1."""
    outlines = [fit_outline(clip) for clip in clips]
    figures = {name: [getattr(outline, name) for outline in outlines] for name in ("iou", "steadiness")}
    return {name: ClipMean(torch.tensor(values, dtype=torch.float64)) for name, values in figures.items()}


def _fit(shape: str, masks: NDArray[np.bool_], places: Array) -> Outline:
    """Fit a shape by a pattern search from the area and the centre of mass: step by step to the best of six neighbours of each frame."""
    area, drop = unit_shape(shape)
    radius = np.sqrt(places[:, 2] / area)
    found = np.stack([places[:, 0], places[:, 1] - drop * radius, radius], axis=-1).astype(np.float32)  # x, y, radius [t 3]
    best = _overlap(shape, masks, found)
    for step in _STEPS:
        # Twice, so that a frame can move along a diagonal.
        for _ in range(2):
            moves = (radius * step)[:, None, None] * np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)  # [t 6 3]
            candidates = found[:, None] + moves
            overlaps = np.stack([_overlap(shape, masks, candidates[:, number]) for number in range(6)], axis=1)
            choice = overlaps.argmax(axis=1)
            rows = np.arange(len(found))
            better = overlaps[rows, choice] > best
            found = np.where(better[:, None], candidates[rows, choice], found)
            best = np.where(better, overlaps[rows, choice], best)
    return Outline(shape, found[:, :2], found[:, 2], best)


def _overlap(shape: str, masks: NDArray[np.bool_], placed: Array) -> Array:
    """Return the intersection over union of masks [t h w] with a shape of the given x, y and radius [t 3], for each frame [t]."""
    x = np.arange(masks.shape[2], dtype=np.float32) + 0.5 - placed[:, 0, None, None]
    y = np.arange(masks.shape[1], dtype=np.float32)[:, None] + 0.5 - placed[:, 1, None, None]
    painted = distance(shape, x, y, placed[:, 2, None, None]) < 0
    both = np.count_nonzero(painted & masks, axis=(1, 2))
    return np.asarray(both / np.maximum(np.count_nonzero(painted | masks, axis=(1, 2)), 1), np.float32)


def _residual(values: Array, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of values [t] from the straight line in `time` [t] that fits them best."""
    slope, start = np.polyfit(time, values.astype(np.float64), 1)
    return np.asarray(values - (start + slope * time))
