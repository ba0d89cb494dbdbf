"""Figures of class-conditional video: the label gives shape and colour, and everything else is drawn by the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from walt_pl.paper.figure import bootstrap_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, open_cascade, read_pairs, sample_pairs
from walt_pl.shapes.dataset import MOTIONS, SEEN_PAIRS
from walt_pl.shapes.scorer import read_clip

STAGE = "base_class_video"
CLIPS, SHORT = 600, 48
"""Samples. Few clips do not show whether the motions are spread evenly, see `motion_distance`."""


def measure_class_video(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure samples of the classes that occur in videos, in turn.

    The figures are the shares with the right shape, colour and both (`pair`); `iou`; and `motion_distance`, the total variation distance of
    the sampled motions to the uniform distribution of the set. It is 0 for equal numbers of all motions and 5/6 for one motion alone. For
    independent uniform draws it is 0.036 on average with 600 clips and 0.13 with 48.

    Args:
        run: folder with the stages vae and base_class_video.
        index: of the embedded set; not read, since labels are known.
        seed: of the first sample's noise; each further sample adds 1.
        short: take 48 clips.
    """
    cascade = open_cascade(run, [STAGE])
    count = SHORT if short else CLIPS
    pairs = [SEEN_PAIRS[number % len(SEEN_PAIRS)] for number in range(count)]
    clips = sample_pairs(cascade, pairs, seed)
    motions = torch.tensor([MOTIONS.index(read_clip(clip).motion) for clip in clips])
    figures = {**read_pairs(clips, pairs), "motion_distance": bootstrap_figure(_distance_to_uniform, motions)}
    return Measured(figures, clips[:SHOWN], [f"{colour} {shape}" for shape, colour in pairs[:SHOWN]])


def _distance_to_uniform(motions: Tensor) -> float:
    """Return the total variation distance of numbered motions [n] to the uniform distribution."""
    shares = np.bincount(motions.numpy(), minlength=len(MOTIONS)) / len(motions)
    return float(np.abs(shares - 1 / len(MOTIONS)).sum() / 2)
