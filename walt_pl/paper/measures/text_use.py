"""Figures that tell how far a base model uses the words of its captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from walt_pl.paper.figure import mean_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import open_cascade
from walt_pl.paper.measures.prompts import TIMESTEPS, denoising_losses, sample_validation
from walt_pl.shapes.dataset import SHAPES
from walt_pl.shapes.scorer import score


def measure_text_use(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure how far the base model of a run uses the shape word of a caption.

    The figures are the share of samples with the right shape, the error at each timestep, and how far that error grows when the caption
    names another shape. A model that does not read the word has a growth of 0.

    Args:
        run: folder with the stages vae and base.
        index: of the embedded set.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the cases.
    """
    cascade = open_cascade(run, ["base"])
    entries, captions, clips = sample_validation(cascade, index, seed, short)
    shares = score(clips, captions)
    losses = denoising_losses(cascade, entries, captions)
    growth = denoising_losses(cascade, entries, exchange_shapes(captions)) - losses
    figures = {"shape": mean_figure(shares["shape"].clips)}
    for name, values in (("loss", losses), ("growth", growth)):
        figures |= {f"{name}_{timestep}": mean_figure(values[:, place]) for place, timestep in enumerate(TIMESTEPS)}
    return Measured(figures)


def exchange_shapes(captions: Sequence[str]) -> list[str]:
    """Return captions with each shape word replaced by the next one of `SHAPES`."""
    following = dict(zip(SHAPES, (*SHAPES[1:], SHAPES[0]), strict=True))
    return [re.sub("|".join(SHAPES), lambda found: following[found[0]], caption) for caption in captions]
