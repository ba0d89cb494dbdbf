"""Prompt score of the embedded set: analytic readings of shape, colour, motion and texture from pixels, with no learned parts.

Every clip has a reading, even noise: the best match of each kind. Textures can be read at 64 and 128 pixels. At 32 pixels their waves
are shorter than two pixels, and every object reads as plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walt_pl.shapes.clip_mean import ClipMean
from walt_pl.shapes.dataset import COLOURS, PERIOD, RGB, SHAPES, SIZE, distance, parse_caption

Array = NDArray[np.float32]

# Shape and texture are read from every second frame: half the time, with equal answers.
_STRIDE = 2
# Half of the weakest texture at 64 pixels after a blur of one pixel of 128. Twice the strongest texture that is left at 32 pixels.
_FAINT = 0.06
"""Relative amplitude below which an object is plain."""


@dataclass(frozen=True)
class Reading:
    """Content of a clip, in the words of the captions."""

    shape: str
    colour: str
    motion: str
    texture: str


def read_clip(clip: Tensor) -> Reading:
    """Read shape, colour, motion and texture of a clip.

    Args:
        clip: float [3 t h w] in -1..1 with two frames or more, of any size.

    Raises:
        ValueError: the clip has another shape.
    """
    pixels = to_pixels(clip)
    colour, matte = find_object(pixels)
    masks = matte > 0.5  # [t h w]
    places = locate(masks)
    overlap = overlap_by_shape(masks[::_STRIDE], places[::_STRIDE])
    return Reading(
        shape=max(overlap, key=lambda shape: overlap[shape]),
        colour=colour,
        motion=_motion(places, masks.shape[1]),
        texture=_texture(pixels[:, ::_STRIDE], masks[::_STRIDE], places[::_STRIDE], colour),
    )


def score(clips: Tensor, captions: Sequence[str]) -> dict[str, ClipMean]:
    """Return the shares of clips that agree with their captions.

    Args:
        clips: float [b 3 t h w] in -1..1.
        captions: one for each clip. For the caption of a still image, every motion counts as wrong.

    Returns:
        Shares 0..1 by key: shape, colour, motion, texture, pair (shape and colour together), and all (pair and motion together).

    Raises:
        ValueError: there are no clips, or another number of captions, or a caption is not of the embedded set.
    """
    if len(clips) == 0 or len(clips) != len(captions):
        raise ValueError(f"wanted a caption for each of at least one clip, got {len(clips)} clips and {len(captions)} captions")
    right = []
    for clip, caption in zip(clips, captions, strict=True):
        words, seen = parse_caption(caption), read_clip(clip)
        hits = [seen.shape == words.shape, seen.colour == words.colour, seen.motion == words.motion]
        right.append([*hits, seen.texture == words.texture, all(hits[:2]), all(hits)])
    columns = torch.tensor(right, dtype=torch.float64).unbind(1)
    return dict(zip(("shape", "colour", "motion", "texture", "pair", "all"), map(ClipMean, columns), strict=True))


def to_pixels(clip: Tensor) -> Array:
    """Return a clip's pixels in 0..1, float32 [3 t h w].

    Raises:
        ValueError: the clip is not [3 t h w] of two frames or more.
    """
    if clip.ndim != 4 or clip.shape[0] != 3 or clip.shape[1] < 2:
        raise ValueError(f"wanted a clip [3 t h w] of two frames or more, got {list(clip.shape)}")
    return np.clip(np.nan_to_num(clip.detach().float().cpu().numpy()) * 0.5 + 0.5, 0, 1)


def find_object(pixels: Array) -> tuple[str, Array]:
    """Return the object's colour, and its matte [t h w]: about 0 on the background and about 1 inside."""
    palette = np.array([RGB[colour] for colour in COLOURS], np.float32)
    palette -= palette.mean(-1, keepdims=True)  # without the grey part, so the grey background projects to zero
    palette /= np.linalg.norm(palette, axis=-1, keepdims=True)
    share = palette @ pixels.reshape(3, -1)  # [colours t*h*w]
    # Each strongly coloured pixel votes with its strength for the colour nearest in direction.
    strength = share.max(0)
    strong = strength > 0.5 * _peak(strength)
    votes = np.bincount(share[:, strong].argmax(0), weights=strength[strong], minlength=len(COLOURS))
    best = int(votes.argmax())
    own = share[best].reshape(pixels.shape[1:])
    # Relative to this clip's object, so that a pale reconstruction still counts as an object.
    inside = own[own > 0.5 * _peak(own)]
    level = float(np.median(inside)) if inside.size else 1.0
    return COLOURS[best], _smooth(own) / max(level, 1e-3)


def _peak(values: Array) -> float:
    """Return the 99th percentile, which single bright pixels do not change. Every seventh pixel is enough."""
    return float(np.quantile(values.ravel()[::7], 0.99))


def _smooth(matte: Array) -> Array:
    """Average over about the length of a wave. This fills a texture's troughs and removes single noisy pixels."""
    width = max(1, round(PERIOD * matte.shape[1] / SIZE)) | 1  # the wave's length goes by the rows
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (width // 2 + 1, width // 2)
        sums = np.cumsum(np.pad(matte, padding, mode="edge"), axis=axis, dtype=np.float32)
        low, high = np.arange(matte.shape[axis]), np.arange(matte.shape[axis]) + width
        matte = (sums.take(high, axis) - sums.take(low, axis)) / width
    return matte


def locate(masks: NDArray[np.bool_]) -> Array:
    """Return centre x, centre y and area of each frame's object in pixels, [t 3]; without an object, the frame's centre and area 0."""
    height, width = masks.shape[1:]
    area = masks.sum((1, 2)).astype(np.float32)
    x = (masks.sum(1) * (np.arange(width) + 0.5)).sum(-1)
    y = (masks.sum(2) * (np.arange(height) + 0.5)).sum(-1)
    seen = np.maximum(area, 1)
    return np.stack([np.where(area > 0, x / seen, width / 2), np.where(area > 0, y / seen, height / 2), area], -1).astype(np.float32)


def _motion(places: Array, height: int) -> str:
    """Return the motion with the largest of three changes over the clip: x, y, and twice the radius.

    Each change is the slope of a straight line fitted to all frames, in heights of the frame.
    """
    time = np.linspace(-0.5, 0.5, len(places))
    x, y, area = places.T.astype(np.float64)
    values = np.stack([x, y, 2 * np.sqrt(area / math.pi)]) / height
    change = values @ time / (time @ time)
    axis = int(abs(change).argmax())
    backward, forward = (("left", "right"), ("up", "down"), ("shrinking", "growing"))[axis]
    return forward if change[axis] > 0 else backward


def overlap_by_shape(masks: NDArray[np.bool_], places: Array) -> dict[str, float]:
    """Return the overlap of each shape with the masks, when painted with their areas around their centres: mean over frames, 0..1."""
    x = np.arange(masks.shape[2], dtype=np.float32) + 0.5 - places[:, 0, None, None]
    y = np.arange(masks.shape[1], dtype=np.float32)[:, None] + 0.5 - places[:, 1, None, None]
    overlap = {}
    for shape in SHAPES:
        unit, drop = unit_shape(shape)
        radius = np.sqrt(places[:, 2] / unit)[:, None, None]
        painted = distance(shape, x, y + drop * radius, radius) < 0
        both = (painted & masks).sum((1, 2))
        overlap[shape] = float((both / np.maximum((painted | masks).sum((1, 2)), 1)).mean())
    return overlap


def unit_shape(shape: str) -> tuple[float, float]:
    """Return the area of a shape of radius 1, and the distance of its centre of mass below the centre of its box."""
    grid = np.linspace(-1.2, 1.2, 241, dtype=np.float32)
    inside = distance(shape, grid[None], grid[:, None], np.ones((1, 1), np.float32)) < 0
    return float(inside.sum() * 0.01**2), float((inside.sum(1) * grid).sum() / inside.sum())


def _texture(pixels: Array, masks: NDArray[np.bool_], places: Array, colour: str) -> str:
    """Return the texture, from waves of the known length along x and y inside the object, relative to its brightness."""
    tone = np.array(RGB[colour], np.float32) / 255
    light = np.tensordot(tone / (tone @ tone), pixels, 1)  # [t h w], 1 in a plain object
    inner = _window(masks, places)
    weight = np.maximum(inner.sum((1, 2)), 1e-3)
    mean = (light * inner).sum((1, 2)) / weight
    waves = (light - mean[:, None, None]) * inner
    turn = 2j * math.pi / PERIOD * SIZE / masks.shape[1]
    along_x = waves.sum(1) @ np.exp(turn * np.arange(masks.shape[2]))
    along_y = waves.sum(2) @ np.exp(turn * np.arange(masks.shape[1]))
    height = np.median(2 * abs(np.stack([along_x, along_y])) / (weight * np.maximum(abs(mean), 1e-3)), -1)
    if math.hypot(*height) < _FAINT:
        return "plain"
    return "dotted" if height.min() > 0.5 * height.max() else "striped"


def _window(masks: NDArray[np.bool_], places: Array) -> Array:
    """Return weights of a texture's pixels, [t h w]: a Gaussian with sigma 0.4 of the object's radius.

    It suppresses the object's edges, which would count as waves.
    """
    x = np.arange(masks.shape[2], dtype=np.float32) + 0.5 - places[:, 0, None]
    y = np.arange(masks.shape[1], dtype=np.float32) + 0.5 - places[:, 1, None]
    spread = np.maximum(places[:, 2] / math.pi, 1)[:, None] * 2 * 0.4**2
    bell = np.exp(-(x**2) / spread)[:, None, :] * np.exp(-(y**2) / spread)[:, :, None]
    return np.asarray(bell * masks, np.float32)
