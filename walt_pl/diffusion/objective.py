"""The training objective: squared error of the network's output, with self-conditioning (Chen et al., arXiv 2208.04202)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.path import ProbabilityPath, add_noise

Denoise = Callable[[Tensor, Tensor, Condition, Tensor | None], Tensor]
"""Signature of a denoiser: (x_t [f c h w], timestep [s], condition, estimate [f c h w] or None) -> output [f c h w]."""


@dataclass(frozen=True)
class TrainingDraws:
    """Random draws for the samples of a batch."""

    timestep: Tensor
    """[s] timestep of each sample."""
    noise: Tensor
    """[f c h w] standard normal."""
    self_condition: Tensor | None
    """[s] bool: whether the sample gets a self-conditioning pass; None for models without self-conditioning."""


def denoising_error(denoise: Denoise, path: ProbabilityPath, x0: Tensor, condition: Condition, draws: TrainingDraws) -> Tensor:
    """Return the squared error of the prediction.

    Args:
        denoise: the network.
        path: from clean latents to noise.
        x0: clean normalised latents [f c h w], float32.
        condition: of the samples, with their layout.
        draws: timesteps, noise and self-conditioning of this optimiser step.

    Returns:
        Mean over channels, rows and columns, float32 [f].
    """
    n = condition.layout.per_frame(draws.timestep)
    xt = add_noise(path, x0, draws.noise, n)
    estimate = self_conditioning_pass(denoise, path, xt, condition, draws)
    output = denoise(xt, draws.timestep, condition, estimate)
    return (output.float() - path.target(x0, draws.noise, n)).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def self_conditioning_pass(
    denoise: Denoise, path: ProbabilityPath, xt: Tensor, condition: Condition, draws: TrainingDraws
) -> Tensor | None:
    """Return the clean latents that a first pass predicts.

    Run only the selected samples. If no video (or no image) was selected, run one and discard the result: under ZeRO-3 all ranks must
    gather the same weights in the same order, and videos need other ones than images.

    Args:
        denoise: the network.
        path: from clean latents to noise.
        xt: noisy latents [f c h w].
        condition: of the samples.
        draws: timesteps, and the selected samples.

    Returns:
        Estimates of x_0 [f c h w], zeros for samples that are not selected; None without self-conditioning.
    """
    if draws.self_condition is None:
        return None
    layout = condition.layout
    rows = draws.self_condition.clone()
    for first, end in ((0, layout.videos), (layout.videos, layout.num_samples)):
        if end > first:
            rows[first] |= not bool(rows[first:end].any())
    frames = layout.per_frame(rows)
    selected = condition.select(rows)
    output = denoise(xt[frames], draws.timestep[rows], selected, None)
    estimate = torch.zeros_like(xt)
    estimate[frames] = selected.fill_context(path.predict_x0(xt[frames], output.float(), layout.per_frame(draws.timestep)[frames]))
    estimate[~layout.per_frame(draws.self_condition)] = 0
    return estimate
