"""DDIM (Song et al., arXiv 2010.02502) over any denoiser, and guidance as a wrapped denoiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.objective import Denoise
from walt_pl.diffusion.schedule import Schedule


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


def guided(denoise: Denoise, guidance: Guidance, schedule: Schedule, null: Callable[[Condition], Condition]) -> Denoise:
    """Wrap a denoiser in guidance.

    Args:
        denoise: the network.
        guidance: strength and shape.
        schedule: whose number of levels the power-cosine needs.
        null: makes the unconditional condition of a condition, e.g. ``Condition.without_text``.
    """
    if guidance.scale == 1:
        return denoise

    def wrapped(x: Tensor, step: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        # All samples of a batch are at the same level while sampling.
        w = guidance.weight(int(step[0]), schedule.steps)
        told = denoise(x, step, condition, estimate)
        if w == 1:
            return told
        v = torch.lerp(denoise(x, step, null(condition), estimate), told, w)
        if guidance.rescale:
            v = _rescaled(v, told, condition, guidance.rescale)
        return v

    return wrapped


def _rescaled(v: Tensor, told: Tensor, condition: Condition, phi: float) -> Tensor:
    """Bring the spread of each sample's guided v back towards that of the conditional one, over the frames that are not given."""
    layout = condition.layout
    counts = torch.ones_like(v[:, 0, 0, 0]) if condition.past_mask is None else 1 - condition.past_mask[:, 0, 0, 0]

    def mean(value: Tensor) -> Tensor:
        return layout.per_sample(value.mean(dim=(1, 2, 3)) * counts) / layout.per_sample(counts)

    def spread(value: Tensor) -> Tensor:
        square = mean(value.square()) - mean(value).square()
        return layout.per_frame(square.clamp(min=1e-12).sqrt())[:, None, None, None]

    return phi * (v * spread(told) / spread(v)) + (1 - phi) * v


@torch.no_grad()
def ddim(
    denoise: Denoise,
    schedule: Schedule,
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
        schedule: forward process; levels are spaced "trailing", the last update goes to abar = 1.
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
    levels = schedule.trailing(steps)
    for level, following in zip(levels, [*levels[1:], None], strict=True):
        step = torch.full((condition.layout.samples,), level, dtype=torch.int64, device=x.device)
        n = condition.layout.per_frame(step)
        v = denoise(x, step, condition, estimate).float()
        x0, eps = _clean_and_noise(schedule, x, v, n, condition)
        x = x0 if following is None else _ddim_update(schedule, x0, eps, level, following, eta, fresh_noise)
        estimate = x0
        each_step()
    return x


def _clean_and_noise(schedule: Schedule, x: Tensor, v: Tensor, n: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """x_0 and eps of x as v has them; in given frames x_0 is known, and eps follows from it."""
    x0, eps = condition.known(schedule.clean(x, v, n)), schedule.noise(x, v, n)
    if condition.past_mask is None:
        return x0, eps
    a, s = schedule.roots(n, x)
    return x0, torch.where(condition.past_mask.bool(), (x - a * x0) / s, eps)


def _ddim_update(
    schedule: Schedule,
    x0: Tensor,
    eps: Tensor,
    level: int,
    following: int,
    eta: float,
    fresh_noise: Callable[[], Tensor] | None,
) -> Tensor:
    """Equations 12 and 16 of arXiv 2010.02502."""
    now, then = float(schedule.abar[level]), float(schedule.abar[following])
    sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    x = math.sqrt(then) * x0 + math.sqrt(max(1 - then - sigma**2, 0)) * eps
    if sigma:
        x = x + sigma * (torch.randn_like(x) if fresh_noise is None else fresh_noise().to(x))
    return x
