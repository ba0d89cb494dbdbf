"""Figures of the base model at several guidance scales: right words against the variety of its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from walt_pl.diffusion.ddim import Guidance
from walt_pl.paper.figure import Figure, bootstrap_figure, grouped_share_figure, mean_figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import fit_outlines, open_cascade, sample_clips
from walt_pl.sampling.cascade import SamplingConfig
from walt_pl.shapes.dataset import MOTIONS, SEEN_PAIRS, SHAPES, TEXTURES, Scene, sample_scene
from walt_pl.shapes.evaluation import default_steps, request_captions
from walt_pl.shapes.scorer import score

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
SEEDS, SHORT_SEEDS = 12, 2
"""Samples of each prompt."""
SCENES = 6000
"""Scenes that the variance of real positions is computed from, over 300 for each shape and motion."""


def measure_guidance(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure samples of 18 prompts, one for each shape and motion, with several seeds each, at all guidance scales.

    For scale S the figures are `shape_S`, `colour_S`, `motion_S`, `all_S` and `iou_S`, each a mean over prompts; and `spread_S`: standard
    deviation of the first centres over the seeds of a prompt, divided by that of real clips. It is 1 for samples as various as real clips.
    Scales share their seeds, so their noise is equal.

    Args:
        run: folder with the stages vae and base.
        index: of the embedded set; not read, since its prompts are known.
        seed: of the first sample's noise; each further sample adds 1.
        short: take 2 seeds a prompt instead of 12.
    """
    cascade = open_cascade(run, ["base"])
    scenes, seeds = _choose_prompts(), SHORT_SEEDS if short else SEEDS
    captions = [scene.caption for scene in scenes for _ in range(seeds)]
    steps, real = default_steps(cascade), _real_variances(scenes, min(cascade.pixels("base")))
    figures: dict[str, Figure] = {}
    shown = []
    for scale in SCALES:
        sampling = SamplingConfig(steps, guidance={"base": Guidance(scale)})
        clips = sample_clips(cascade, request_captions(captions, seed), sampling)
        figures |= {f"{name}_{scale:g}": figure for name, figure in _measure_scale(clips, captions, seeds, real).items()}
        shown.append(clips[0])
    return Measured(figures, torch.stack(shown), [f"guidance {scale:g}: {captions[0]}" for scale in SCALES])


def _choose_prompts() -> list[Scene]:
    """Return a scene for each shape and motion; colours and textures change from one to the next."""
    colours = {shape: [colour for kind, colour in SEEN_PAIRS if kind == shape] for shape in SHAPES}
    found = []
    for number, (shape, motion) in enumerate(product(SHAPES, MOTIONS)):
        words = shape, colours[shape][number % len(colours[shape])], motion, TEXTURES[number % len(TEXTURES)]
        found.append(Scene(*words, start=(0, 0), end=(0, 0), radius=(0, 0), background=0))
    return found


def _measure_scale(clips: Tensor, captions: Sequence[str], seeds: int, real: Tensor) -> Mapping[str, Figure]:
    """Return the figures of the clips of one scale.

    Args:
        clips: pixels [b 3 t h w], those of a prompt one after the other.
        captions: one for each clip.
        seeds: clips of a prompt.
        real: variance of the first centres of real clips for each prompt.
    """
    shares, outlines = score(clips, captions), fit_outlines(clips)
    names = ("shape", "colour", "motion", "all")
    figures = {name: grouped_share_figure(shares[name].clips.unflatten(0, (-1, seeds))) for name in names}
    overlaps = torch.tensor([outline.iou for outline in outlines], dtype=torch.float64)
    figures["iou"] = mean_figure(overlaps.unflatten(0, (-1, seeds)).mean(dim=1))
    centres = torch.from_numpy(np.stack([outline.centre[0] for outline in outlines])).double().unflatten(0, (-1, seeds))
    figures["spread"] = bootstrap_figure(_relative_spread, torch.stack([centres.var(dim=1).sum(dim=-1), real], dim=-1))
    return figures


def _relative_spread(variances: Tensor) -> float:
    """Return the ratio of the standard deviations, from variances of samples and of real clips by prompt, [n 2]."""
    sampled, real = variances.sum(dim=0).tolist()
    return math.sqrt(sampled / real)


def _real_variances(prompts: Sequence[Scene], size: int) -> Tensor:
    """Return the variance of the first centres of real clips in square pixels, x and y together, for each prompt's shape and motion."""
    rng = np.random.default_rng(0)
    starts: dict[tuple[str, str | None], list[tuple[float, float]]] = {(prompt.shape, prompt.motion): [] for prompt in prompts}
    for _ in range(SCENES):
        scene = sample_scene(rng)
        starts[scene.shape, scene.motion].append(scene.start)
    found = [np.var(starts[prompt.shape, prompt.motion], axis=0, ddof=1).sum() * size**2 for prompt in prompts]
    return torch.tensor(found, dtype=torch.float64)
