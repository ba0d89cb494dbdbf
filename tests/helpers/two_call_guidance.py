"""Guidance with a call of the network for each branch: the reference of the one that runs both in a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.ddim import Guidance, _rescale
from walt_pl.diffusion.objective import Denoise
from walt_pl.diffusion.path import ProbabilityPath


def two_call_guidance(
    denoise: Denoise, guidance: Guidance, path: ProbabilityPath, unconditional: Callable[[Condition], Condition]
) -> Denoise:
    """Wrap a denoiser as `classifier_free_guidance` does."""

    def wrapped(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        w = guidance.weight(int(timestep[0]), path.num_timesteps)
        conditional = denoise(x, timestep, condition, estimate)
        if w == 1:
            return conditional
        guided = torch.lerp(denoise(x, timestep, unconditional(condition), estimate), conditional, w)
        return _rescale(guided, conditional, condition, guidance.rescale) if guidance.rescale else guided

    return wrapped
