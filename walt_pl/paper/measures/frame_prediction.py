"""Figures of frame prediction: 12 frames from 5, without a caption or a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from walt_pl.data.index import Index
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import (
    SHOWN,
    average,
    count_cases,
    extend_path,
    fit_outlines,
    open_cascade,
    sample_clips,
)
from walt_pl.shapes.dataset import parse_caption
from walt_pl.shapes.evaluation import read_clips, request_captions
from walt_pl.shapes.scorer import read_clip

STAGE = "base_frame_prediction"
CLIPS = 256
"""Validation clips that are continued."""


def measure_frame_prediction(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure clips that go on from the first 5 frames of validation clips, in their 12 new frames alone.

    The figures are the shares in which motion, shape and colour go on, and `all` three; and `iou`. Textures cannot be read at 32 pixels.
    `position_error` is the mean distance of the new centres from the true clip's path, in pixels. That path is the straight line fitted to
    the centres of its 17 frames. `position_error_still` is that of an object that stays where the fifth frame has it.

    Args:
        run: folder with the stages vae and base_frame_prediction.
        index: of the embedded set.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the clips.
    """
    cascade = open_cascade(run, [STAGE])
    entries = Index(index, "val").videos[: count_cases(CLIPS, short)]
    given, captions = cascade.overlap, [entry.caption for entry in entries]
    true = read_clips(entries, min(cascade.pixels(STAGE)))
    request = request_captions([""] * len(captions), seed, {STAGE: cascade.encode(true[:, :, :given])})
    clips = sample_clips(cascade, request)
    new = clips[:, :, given:]
    seen, words = [read_clip(clip) for clip in new], [parse_caption(caption) for caption in captions]
    right = {
        name: [getattr(reading, name) == getattr(word, name) for reading, word in zip(seen, words, strict=True)]
        for name in ("motion", "shape", "colour")
    }
    outlines = fit_outlines(new)
    paths = [extend_path(outline.centre, slice(None), true.shape[2]) for outline in fit_outlines(true)]
    figures = {
        **{name: average(hits) for name, hits in right.items()},
        "all": average(map(all, zip(*right.values(), strict=True))),
        "iou": average(outline.iou for outline in outlines),
        "position_error": average(
            np.linalg.norm(outline.centre - path[given:], axis=-1).mean() for outline, path in zip(outlines, paths, strict=True)
        ),
        "position_error_still": average(np.linalg.norm(path[given:] - path[given - 1], axis=-1).mean() for path in paths),
    }
    return Measured(figures, clips[:SHOWN], [f"5 frames given: {caption}" for caption in captions[:SHOWN]])
