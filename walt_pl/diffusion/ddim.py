"""DDIM (Song et al., arXiv 2010.02502) over any denoiser, and guidance as a wrapped denoiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.objective import Denoise
from walt_pl.diffusion.path import ProbabilityPath, alpha_sigma_like, trailing_timesteps


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance ``u + w (c - u)``, mixed on v: at pure noise eps carries nothing."""

    scale: float = 1.0
    """w; 1 is the conditional model alone."""
    shape: Literal["constant", "power-cosine"] = "constant"
    """The same at every level, or none at pure noise and all at the end (MDT, arXiv 2303.14389)."""
    power: float = 4.0
    """Power of the power-cosine."""
    rescale: float = 0.0
    """phi of arXiv 2305.08891, section 3.4: how much of the conditional prediction's spread is restored."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance: the scale must be 0 or more (1 is the conditional model alone), got {self.scale:g}")

    def weight(self, n: int, steps: int) -> float:
        """w at level n of N."""
        if self.shape == "constant":
            return self.scale
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * (1 - n / steps) ** self.power)) / 2


def classifier_free_guidance(
    denoise: Denoise, guidance: Guidance, path: ProbabilityPath, unconditional: Callable[[Condition], Condition]
) -> Denoise:
    """Wrap a denoiser in guidance.

    Args:
        denoise: the network.
        guidance: strength and shape.
        path: whose number of timesteps the power-cosine needs.
        unconditional: makes the unconditional branch's condition of a condition, e.g. ``Condition.without_text``.
    """
    if guidance.scale == 1:
        return denoise

    def wrapped(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        # All samples of a batch are at the same level while sampling.
        w = guidance.weight(int(timestep[0]), path.num_timesteps)
        conditional = denoise(x, timestep, condition, estimate)
        if w == 1:
            return conditional
        v = torch.lerp(denoise(x, timestep, unconditional(condition), estimate), conditional, w)
        if guidance.rescale:
            v = _rescale(v, conditional, condition, guidance.rescale)
        return v

    return wrapped


def _rescale(v: Tensor, conditional: Tensor, condition: Condition, phi: float) -> Tensor:
    """Bring the spread of each sample's guided v back towards that of the conditional one, over the frames that are not given."""
    layout = condition.layout
    counts = torch.ones_like(v[:, 0, 0, 0]) if condition.context_mask is None else 1 - condition.context_mask[:, 0, 0, 0]

    def mean(value: Tensor) -> Tensor:
        return layout.per_sample(value.mean(dim=(1, 2, 3)) * counts) / layout.per_sample(counts)

    def spread(value: Tensor) -> Tensor:
        square = mean(value.square()) - mean(value).square()
        return layout.per_frame(square.clamp(min=1e-12).sqrt())[:, None, None, None]

    return phi * (v * spread(conditional) / spread(v)) + (1 - phi) * v


@torch.no_grad()
def ddim(
    denoise: Denoise,
    path: ProbabilityPath,
    noise: Tensor,
    condition: Condition,
    steps: int = 50,
    eta: float = 0.0,
    fresh_noise: Callable[[], Tensor] | None = None,
    each_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Sample clean latents.

    Args:
        denoise: a denoiser, guided or not.
        path: from clean latents to noise; timesteps are spaced "trailing", the last update goes to the clean latent.
        noise: starting point, standard normal [f c h w].
        condition: what is known. Given frames come back as given, and on the way the network sees them as in training, with the noise of
            the level: nothing is learnt about v there. A network without frame prediction learns of its past by this alone (the
            replacement method of Ho et al., arXiv 2204.03458, section 3.1).
        steps: number of network evaluations (twice that with guidance).
        eta: 0 is deterministic, 1 is ancestral sampling.
        fresh_noise: gives the noise [f c h w] that each step adds when eta > 0; from torch's global generator when not given.
        each_step: called after every step, for progress.

    Returns:
        x_0, float32 [f c h w].
    """
    x, estimate = noise.float(), None
    levels = trailing_timesteps(path, steps)
    for level, following in zip(levels, [*levels[1:], None], strict=True):
        timestep = torch.full((condition.layout.num_samples,), level, dtype=torch.int64, device=x.device)
        n = condition.layout.per_frame(timestep)
        v = denoise(x, timestep, condition, estimate).float()
        x0, eps = _predict(path, x, v, n, condition)
        x = x0 if following is None else _ddim_update(path, x0, eps, level, following, eta, fresh_noise)
        estimate = x0
        each_step()
    return x


def _predict(path: ProbabilityPath, x: Tensor, output: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """Return x_0 and eps as the network's output has them; in given frames x_0 is known, and eps follows from it."""
    x0, eps = condition.known(path.predict_x0(x, output, t)), path.predict_eps(x, output, t)
    if condition.context_mask is None:
        return x0, eps
    a, s = alpha_sigma_like(path, t, x)
    return x0, torch.where(condition.context_mask.bool(), (x - a * x0) / s, eps)


def _ddim_update(
    path: ProbabilityPath,
    x0: Tensor,
    eps: Tensor,
    level: int,
    following: int,
    eta: float,
    fresh_noise: Callable[[], Tensor] | None,
) -> Tensor:
    """Return x at the following timestep (equations 12 and 16 of arXiv 2010.02502)."""
    alphas, sigmas = (values.tolist() for values in path.alpha_sigma(torch.tensor([level, following])))
    deviation = eta * sigmas[1] / sigmas[0] * math.sqrt(1 - (alphas[0] / alphas[1]) ** 2)
    if not deviation:
        return alphas[1] * x0 + sigmas[1] * eps
    x = alphas[1] * x0 + math.sqrt(max(sigmas[1] ** 2 - deviation**2, 0)) * eps
    return x + deviation * (torch.randn_like(x) if fresh_noise is None else fresh_noise().to(x))
