"""The training objective: squared error of the velocity, with self-conditioning (Chen et al., arXiv 2208.04202)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor, Condition, Tensor | None], Tensor]
"""(x_t [f c h w], step [s], condition, estimate [f c h w] or None) -> v [f c h w]."""


@dataclass(frozen=True)
class Draws:
    """What chance decides about a batch."""

    step: Tensor
    """[s] noise level of each sample."""
    noise: Tensor
    """[f c h w] standard normal."""
    self_condition: Tensor | None
    """[s] bool: whether the sample gets a first pass; None where no sample ever does."""


def velocity_error(denoise: Denoise, schedule: Schedule, x0: Tensor, condition: Condition, draws: Draws) -> Tensor:
    """Squared error of v, meaned over channels and places: one number for each frame, float32 [f].

    Args:
        denoise: the network.
        schedule: forward process.
        x0: clean normalised latents [f c h w], float32.
        condition: what the network is told; its layout says what the frames are.
        draws: noise level, noise and self-conditioning of this step.
    """
    n = condition.layout.per_frame(draws.step)
    xt = schedule.add_noise(x0, draws.noise, n)
    estimate = first_estimate(denoise, schedule, xt, condition, draws)
    v = denoise(xt, draws.step, condition, estimate)
    return (v.float() - schedule.velocity(x0, draws.noise, n)).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def first_estimate(denoise: Denoise, schedule: Schedule, xt: Tensor, condition: Condition, draws: Draws) -> Tensor | None:
    """The clean latent as a first pass sees it, in the rows that were drawn; zeros in the others; None without self-conditioning.

    Only the drawn rows are run; and of a kind, videos or images, of which none was drawn, the first one, for nothing: all ranks of a
    sharded model must gather the same weights in the same order, and videos need other ones than images.
    """
    if draws.self_condition is None:
        return None
    layout = condition.layout
    rows = draws.self_condition.clone()
    for first, end in ((0, layout.videos), (layout.videos, layout.samples)):
        if end > first:
            rows[first] |= not bool(rows[first:end].any())
    frames = layout.per_frame(rows)
    told = condition.select(rows)
    v = denoise(xt[frames], draws.step[rows], told, None)
    estimate = torch.zeros_like(xt)
    estimate[frames] = told.known(schedule.clean(xt[frames], v.float(), layout.per_frame(draws.step)[frames]))
    estimate[~layout.per_frame(draws.self_condition)] = 0
    return estimate
