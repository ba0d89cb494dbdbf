"""DDIM (Song et al., arXiv 2010.02502) over any denoiser, and guidance as a wrapped denoiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from walt_pl.diffusion.condition import Condition, derive_once
from walt_pl.diffusion.objective import Denoise
from walt_pl.diffusion.path import ProbabilityPath, alpha_sigma_like, trailing_timesteps

MAX_POWER = 1000.0
"""Largest power of the power-cosine."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance `u + w (c - u)` of the network's outputs. At pure noise, one of eps would hold no information."""

    scale: float = 1.0
    """Guidance scale w; 1 is the conditional model alone."""
    shape: Literal["constant", "power-cosine"] = "constant"
    """Guidance over the timesteps: constant, or from none at pure noise to the full scale at the end (MDT, arXiv 2303.14389)."""
    power: float = 4.0
    """Power of the power-cosine."""
    rescale: float = 0.0
    """phi of arXiv 2305.08891, section 3.4: the share of the conditional prediction's standard deviation that is restored, 0 .. 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance: the scale must be 0 or more (1 is the conditional model alone), got {self.scale:g}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance: the rescale is a share, 0 .. 1, got {self.rescale:g}")
        if not 0 < self.power <= MAX_POWER:
            raise ValueError(f"guidance: the power must be above 0 and at most {MAX_POWER:g}, got {self.power:g}")

    def weight(self, n: int, steps: int) -> float:
        """Return the guidance scale at timestep `n` of `steps` timesteps."""
        if self.shape == "constant":
            return self.scale
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * (1 - n / steps) ** self.power)) / 2


def classifier_free_guidance(
    denoise: Denoise, guidance: Guidance, path: ProbabilityPath, unconditional: Callable[[Condition], Condition]
) -> Denoise:
    """Wrap a denoiser in classifier-free guidance.

    Both branches run as one batch of twice the samples, which needs twice the memory of one.

    Args:
        denoise: the network.
        guidance: scale and shape.
        path: its number of timesteps is needed by the power-cosine.
        unconditional: turns a condition into that of the unconditional branch, e.g. `Condition.without_text`.

    Returns:
        The guided denoiser; `denoise` itself for scale 1. Its timesteps have to be on the CPU, as those of `ddim` are: reading w from a
        device would wait for all of its work.
    """
    if guidance.scale == 1:
        return denoise

    both_branches = derive_once(lambda condition: condition.double(unconditional(condition)))

    def wrapped(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        # In sampling, all samples of a batch have one timestep.
        w = guidance.weight(int(timestep[0]), path.num_timesteps)
        if w == 1:
            return denoise(x, timestep, condition, estimate)
        layout = condition.layout
        outputs = denoise(
            layout.double_frames(x, x),
            layout.double_samples(timestep, timestep),
            both_branches(condition),
            None if estimate is None else layout.double_frames(estimate, estimate),
        )
        conditional, null = layout.halve_frames(outputs)
        guided = torch.lerp(null, conditional, w)
        return _rescale(guided, conditional, condition, guidance.rescale) if guidance.rescale else guided

    return wrapped


def _rescale(v: Tensor, conditional: Tensor, condition: Condition, phi: float) -> Tensor:
    """Rescale each sample's guided v towards the standard deviation of the conditional one (arXiv 2305.08891, section 3.4).

    The deviations are taken over the frames that are not context frames.

    Args:
        v: guided prediction [f c h w].
        conditional: prediction of the conditional branch [f c h w].
        condition: of the samples.
        phi: share of the rescaled prediction, 0 .. 1.
    """
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
        denoise: a denoiser, guided or not. It gets its timesteps [s] on the CPU, so that nothing in a step waits for the device.
        path: from clean latents to noise; timesteps are spaced "trailing", and the last update returns the clean latent.
        noise: starting point, standard normal [f c h w].
        condition: of the samples. Context frames are returned unchanged. Until then the network sees them as in training, with the
            noise of the timestep, since it has not learnt v there. A network without frame prediction gets its context frames in this
            way only (the replacement method of Ho et al., arXiv 2204.03458, section 3.1).
        steps: number of network evaluations.
        eta: 0 is deterministic, 1 is ancestral sampling.
        fresh_noise: returns the noise [f c h w] that each sampling step adds when eta > 0; None draws from torch's global generator.
        each_step: called after every sampling step, for progress.

    Returns:
        x_0, float32 [f c h w].

    Raises:
        ValueError: `steps` is not 1 .. `path.num_timesteps`.
    """
    x, estimate = noise.float(), None
    timesteps = trailing_timesteps(path, steps)
    on_device = torch.tensor(timesteps, device=x.device)
    for i, (timestep, next_timestep) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
        per_sample = torch.full((condition.layout.num_samples,), timestep, dtype=torch.int64)
        output = denoise(x, per_sample, condition, estimate).float()
        x0, eps = _predict(path, x, output, on_device[i].expand(len(x)), condition)
        x = x0 if next_timestep is None else _ddim_update(path, x0, eps, timestep, next_timestep, eta, fresh_noise)
        estimate = x0
        each_step()
    return x


def _predict(path: ProbabilityPath, x: Tensor, output: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """Return x_0 and eps, [f c h w] each, from the network's output; in context frames x_0 is known, and eps follows from it."""
    x0, eps = condition.fill_context(path.predict_x0(x, output, t)), path.predict_eps(x, output, t)
    if condition.context_mask is None:
        return x0, eps
    a, s = alpha_sigma_like(path, t, x)
    return x0, torch.where(condition.context_mask.bool(), (x - a * x0) / s, eps)


def _ddim_update(
    path: ProbabilityPath,
    x0: Tensor,
    eps: Tensor,
    timestep: int,
    next_timestep: int,
    eta: float,
    fresh_noise: Callable[[], Tensor] | None,
) -> Tensor:
    """Return x [f c h w] at `next_timestep`, from x_0 and eps at `timestep` (equation 12 of arXiv 2010.02502).

    The added noise has `eta` times the deviation of q(x_s | x_t, x_0), where s is next after t: equation 16 if alpha^2 + sigma^2 = 1.
    """
    alphas, sigmas = (values.tolist() for values in path.alpha_sigma(torch.tensor([timestep, next_timestep])))
    variance = sigmas[0] ** 2 - (alphas[0] / alphas[1] * sigmas[1]) ** 2  # of q(x_t | x_s)
    deviation = eta * sigmas[1] / sigmas[0] * math.sqrt(variance)
    if not deviation:
        return alphas[1] * x0 + sigmas[1] * eps
    x = alphas[1] * x0 + math.sqrt(max(sigmas[1] ** 2 - deviation**2, 0)) * eps
    return x + deviation * (torch.randn_like(x) if fresh_noise is None else fresh_noise().to(x))
