"""Sampling, readings and figures that several measures of the embedded set share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walt_pl.paper.figure import Figure, mean_figure
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.shapes.dataset import PAIRS
from walt_pl.shapes.evaluation import default_steps, sample_latents
from walt_pl.shapes.outline import Outline, fit_outline
from walt_pl.shapes.scorer import read_clip

SHOWN = 8
"""Clips of a picture."""


def open_cascade(run: Path, stages: Sequence[str]) -> Cascade:
    """Load these stages of a run, and its autoencoder, onto the GPU where there is one."""
    return Cascade.open(run, stages, device="cuda" if torch.cuda.is_available() else "cpu")


def count_cases(count: int, short: bool) -> int:
    """Return the number of cases: an eighth when short, at least 8."""
    return max(8, count // 8) if short else count


def sample_clips(cascade: Cascade, request: SampleRequest, sampling: SamplingConfig | None = None) -> Tensor:
    """Sample clips of the base model, pixels [b 3 t h w] in -1..1.

    Args:
        cascade: with the base model.
        request: conditions, seeds and context frames.
        sampling: settings; those of an evaluation when None.
    """
    settings = sampling or SamplingConfig(default_steps(cascade))
    return cascade.decode(sample_latents(cascade, cascade.base, request, settings))


def fit_outlines(clips: Tensor) -> list[Outline]:
    """Fit an ideal shape to the object of each clip [b 3 t h w]."""
    return [fit_outline(clip) for clip in clips]


def average(values: Iterable[float | bool]) -> Figure:
    """Return the mean of a value over cases with its interval."""
    return mean_figure(torch.tensor(list(values), dtype=torch.float64))


def read_pairs(clips: Tensor, pairs: Sequence[tuple[str, str]]) -> dict[str, Figure]:
    """Return the shares of clips [b 3 t h w] with the right `shape`, `colour` and both (`pair`), and their mean `iou`.

    Args:
        clips: of two frames or more.
        pairs: right shape and colour of each clip.
    """
    seen = [read_clip(clip) for clip in clips]
    return {
        "shape": average(reading.shape == shape for reading, (shape, _) in zip(seen, pairs, strict=True)),
        "colour": average(reading.colour == colour for reading, (_, colour) in zip(seen, pairs, strict=True)),
        "pair": average((reading.shape, reading.colour) == pair for reading, pair in zip(seen, pairs, strict=True)),
        "iou": average(outline.iou for outline in fit_outlines(clips)),
    }


def sample_pairs(cascade: Cascade, pairs: Sequence[tuple[str, str]], seed: int) -> Tensor:
    """Sample a clip of the class of each pair of shape and colour; the seed of each further clip adds 1."""
    return sample_clips(cascade, SampleRequest(labels=[PAIRS.index(pair) for pair in pairs], seeds=[seed + i for i in range(len(pairs))]))


def extend_path(centre: NDArray[np.float32], known: slice, frames: int) -> NDArray[np.float64]:
    """Return the ideal centre of each frame, [frames 2] in pixels, continued from known frames.

    A centre of the set moves along a straight line, by one step every second frame (`walt_pl.shapes.dataset.stepwise_time`).

    Args:
        centre: centre (x, y) of each frame in pixels, [t 2].
        known: frames that the line is fitted to.
        frames: number of frames of the result.
    """
    time = np.floor(np.arange(max(frames, len(centre))) / 2)
    slope, start = np.polyfit(time[: len(centre)][known], centre[known].astype(np.float64), 1)
    return np.asarray(start + slope * time[:frames, None])
