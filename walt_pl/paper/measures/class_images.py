"""Figures of class-conditional images: the label gives shape and colour."""

from __future__ import annotations

from pathlib import Path

from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, count_cases, open_cascade, read_pairs, sample_pairs
from walt_pl.shapes.dataset import PAIRS

STAGE = "base_class_images"
IMAGES = 288
"""Samples, 16 of each class."""


def measure_class_images(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure samples of all classes, in turn: shares with the right shape, colour and both (`pair`), and `iou`.

    Args:
        run: folder with the stages vae and base_class_images.
        index: of the embedded set; not read, since labels are known.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the images.
    """
    cascade = open_cascade(run, [STAGE])
    count = count_cases(IMAGES, short)
    pairs = [PAIRS[number % len(PAIRS)] for number in range(count)]
    images = sample_pairs(cascade, pairs, seed)
    clips = images.expand(-1, -1, 2, -1, -1)  # the scorer reads two frames or more
    return Measured(read_pairs(clips, pairs), images[:SHOWN], [f"{colour} {shape}" for shape, colour in pairs[:SHOWN]])
