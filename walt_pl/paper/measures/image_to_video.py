"""Figures of image to video: 17 frames from the first one and a caption."""

from __future__ import annotations

from pathlib import Path

from walt_pl.data.index import Index
from walt_pl.metrics.frames import psnr
from walt_pl.paper.figure import mean_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, average, count_cases, fit_outlines, open_cascade, sample_clips
from walt_pl.shapes.evaluation import read_clips, request_captions
from walt_pl.shapes.scorer import score

STAGE = "base_image_to_video"
CLIPS = 256
"""Validation clips whose first frames are given."""


def measure_image_to_video(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure clips that begin with the first frame of validation clips and follow their captions.

    The figures are the shares with the right colour, motion, shape and all three; `iou`; and `first_frame_psnr`, in dB, of the first frame
    beside the given one. The autoencoder's loss is part of it: `first_frame_psnr_autoencoder` is that of its reconstruction.

    Args:
        run: folder with the stages vae and base_image_to_video.
        index: of the embedded set.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the clips.
    """
    cascade = open_cascade(run, [STAGE])
    entries = Index(index, "val").videos[: count_cases(CLIPS, short)]
    captions = [entry.caption for entry in entries]
    first = read_clips(entries, min(cascade.pixels(STAGE)))[:, :, :1]
    given = cascade.encode(first)
    clips = sample_clips(cascade, request_captions(captions, seed, {STAGE: given}))
    shares = score(clips, captions)
    figures = {
        **{name: mean_figure(shares[name].clips) for name in ("colour", "motion", "shape", "all")},
        "iou": average(outline.iou for outline in fit_outlines(clips)),
        "first_frame_psnr": mean_figure(psnr(clips[:, :, :1], first)),
        "first_frame_psnr_autoencoder": mean_figure(psnr(cascade.decode(given), first)),
    }
    return Measured(figures, clips[:SHOWN], captions[:SHOWN])
