"""Figures of a base model on the embedded set: samples of captions, and the denoising error of validation clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.index import Index, IndexEntry
from walt_pl.diffusion.objective import TrainingDraws, denoising_error
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.paper.figure import mean_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, count_cases, open_cascade, sample_clips
from walt_pl.sampling.cascade import Cascade
from walt_pl.sampling.stage_sampler import text_condition
from walt_pl.shapes.evaluation import BATCH, read_clips, request_captions
from walt_pl.shapes.outline import measure_outlines
from walt_pl.shapes.scorer import score

PROMPTS, OUTLINES, UNSEEN = 256, 64, 64
"""Validation captions; those of them whose outlines are fitted; captions of pairs that no training video has."""
TIMESTEPS = (100, 300, 500, 700, 900)
"""Noise levels of the loss."""


def measure_prompts(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure the base model of a run.

    The figures are the shares of samples with the right colour, motion, shape and all three; overlap and steadiness of their outlines; the
    share of right pairs that no training video has; and the loss, the mean of `denoising_losses`.

    Args:
        run: folder with the stages vae and base.
        index: of the embedded set.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the cases.
    """
    cascade = open_cascade(run, ["base"])
    outlines, unseen = (count_cases(count, short) for count in (OUTLINES, UNSEEN))
    entries, captions, clips = sample_validation(cascade, index, seed, short)
    shares = score(clips, captions)
    pairs = [entry.caption for entry in Index(index, "unseen").videos[:unseen]]
    figures = {name: mean_figure(shares[name].clips) for name in ("colour", "motion", "shape", "all")}
    of_pairs = sample_clips(cascade, request_captions(pairs, seed + PROMPTS))
    figures["unseen_pairs"] = mean_figure(score(of_pairs, pairs)["pair"].clips)
    figures |= {name: mean_figure(mean.clips) for name, mean in measure_outlines(clips[:outlines]).items()}
    figures["loss"] = mean_figure(denoising_losses(cascade, entries, captions).mean(dim=1))
    return Measured(figures, clips[:SHOWN], captions[:SHOWN])


def sample_validation(cascade: Cascade, index: Path, seed: int, short: bool) -> tuple[Sequence[IndexEntry], list[str], Tensor]:
    """Return the first validation clips of a set, their captions, and a sample of each caption, pixels [b 3 t h w] in -1..1."""
    entries = Index(index, "val").videos[: count_cases(PROMPTS, short)]
    captions = [entry.caption for entry in entries]
    return entries, captions, sample_clips(cascade, request_captions(captions, seed))


@torch.no_grad()
def denoising_losses(cascade: Cascade, entries: Sequence[IndexEntry], captions: Sequence[str]) -> Tensor:
    """Return the squared error of the base's prediction of v for each clip at each of `TIMESTEPS`, float64 [b timesteps].

    The noise depends on the timestep and the clip's place alone, so that rows and seeds have equal noise. Latents are normalised as in the
    base's training. Losses of other latents (channels, normalisation) or of another schedule do not compare: their targets differ.
    Self-conditioning gets no estimate, as in the validation of a training.

    Args:
        cascade: with the base model.
        entries: clips of the embedded set.
        captions: text that each clip is denoised with.
    """
    sampler, device = cascade.samplers[cascade.base], cascade.device
    losses = []
    for start in range(0, len(entries), BATCH):
        part = entries[start : start + BATCH]
        latents = cascade.encode(read_clips(part, min(cascade.pixels(cascade.base))))
        layout = FrameLayout(len(part), latents.shape[2], 0)
        x0 = layout.join(sampler.normalizer.normalize_clips(latents.float()), latents[:0])
        kept = torch.ones(len(part), dtype=torch.bool, device=device)
        errors = []
        with torch.autocast(device.type, cascade.dtype, enabled=cascade.dtype != torch.float32):
            condition = text_condition(cascade.text, captions[start : start + BATCH], None, layout, kept)
            for timestep in TIMESTEPS:
                rng = PerSampleRNG(0, timestep, torch.arange(start, start + len(part)), device)
                draws = TrainingDraws(torch.full((len(part),), timestep, device=device), rng.randn_frames(layout, x0.shape[1:]), None)
                error = denoising_error(sampler.denoiser, sampler.path, x0, condition, draws)
                errors.append(layout.per_sample(error))
        losses.append(torch.stack(errors, dim=1))
    return torch.cat(losses).double().cpu()
