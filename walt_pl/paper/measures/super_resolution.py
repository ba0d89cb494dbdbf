"""Figures of super-resolution from samples of the base model, whose low-resolution latents have its faults."""

from __future__ import annotations

from pathlib import Path

from walt_pl.data.index import Index
from walt_pl.paper.figure import mean_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, average, count_cases, fit_outlines, open_cascade
from walt_pl.sampling.cascade import SamplingConfig
from walt_pl.shapes.evaluation import default_steps, request_captions, sample_latents
from walt_pl.shapes.scorer import score

CLIPS = 128
"""Validation captions."""


def measure_super_resolution(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure clips that base and sr1 make of captions: `texture` is the share of right textures at 64 pixels, and `iou` that of outlines.

    Those of the base alone, `iou_base`, are measured at 32 pixels, where textures cannot be read. Runs whose base is one and the same
    have equal samples of it for a seed.

    Args:
        run: folder with the stages vae, base and sr1.
        index: of the embedded set.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the captions.
    """
    cascade = open_cascade(run, ["base", "sr1"])
    captions = [entry.caption for entry in Index(index, "val").videos[: count_cases(CLIPS, short)]]
    request, sampling = request_captions(captions, seed), SamplingConfig(default_steps(cascade))
    latents = sample_latents(cascade, "base", request, sampling)
    sharp = sample_latents(cascade, "sr1", request, sampling, latents)
    low, clips = (cascade.decode(made) for made in (latents, sharp))
    shares = score(clips, captions)
    figures = {
        **{name: mean_figure(shares[name].clips) for name in ("texture", "colour", "motion", "shape")},
        "iou": average(outline.iou for outline in fit_outlines(clips)),
        "iou_base": average(outline.iou for outline in fit_outlines(low)),
    }
    return Measured(figures, clips[:SHOWN], captions[:SHOWN])
