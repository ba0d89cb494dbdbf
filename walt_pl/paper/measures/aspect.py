"""Figures of the base model at 32 rows x 56 columns: finetuned from the square one, and trained from scratch for as many steps."""

from __future__ import annotations

from pathlib import Path

from walt_pl.data.index import Index
from walt_pl.paper.figure import mean_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, average, count_cases, fit_outlines, open_cascade, sample_clips
from walt_pl.shapes.evaluation import request_captions
from walt_pl.shapes.scorer import score

FINETUNED, SCRATCH = "base_9x16", "base_9x16_scratch"
PROMPTS = 256
"""Validation captions."""


def measure_aspect_finetuned(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure the stage base_9x16, see `_measure_stage`."""
    return _measure_stage(FINETUNED, run, index, seed, short)


def measure_aspect_scratch(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure the stage base_9x16_scratch, see `_measure_stage`."""
    return _measure_stage(SCRATCH, run, index, seed, short)


def _measure_stage(stage: str, run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure samples of captions: the shares with the right colour, motion, shape and all three, and `iou`.

    Args:
        stage: to measure.
        run: folder with it and the stage vae.
        index: of the embedded set, square or not: its validation captions are read.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the captions.
    """
    cascade = open_cascade(run, [stage])
    captions = [entry.caption for entry in Index(index, "val").videos[: count_cases(PROMPTS, short)]]
    clips = sample_clips(cascade, request_captions(captions, seed))
    shares = score(clips, captions)
    figures = {name: mean_figure(shares[name].clips) for name in ("colour", "motion", "shape", "all")}
    figures["iou"] = average(outline.iou for outline in fit_outlines(clips))
    return Measured(figures, clips[:SHOWN], captions[:SHOWN])
