"""The probability path between clean latents and noise, which the loss and the solver share."""

from typing import Protocol

from torch import Tensor


class ProbabilityPath(Protocol):
    """A path `x_t = alpha_t x_0 + sigma_t eps` over timesteps 0 .. num_timesteps - 1, and the network's target on it.

    alpha^2 + sigma^2 need not be 1. The solver starts from standard normal noise, so the last timestep has to be noise, or nearly.

    Timesteps are integers [b], one for each sample or frame.
    """

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps; the last one has the most noise."""
        ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, float64 [b]."""
        ...

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the network's training target, from `x0` and `eps` [b ...]."""
        ...

    def predict_x0(self, xt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return the clean latent that the network's `output` at `xt` [b ...] stands for."""
        ...

    def predict_eps(self, xt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return the noise that the network's `output` at `xt` [b ...] stands for."""
        ...


def alpha_sigma_like(path: ProbabilityPath, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_t and sigma_t of timesteps [b], float32, shaped to broadcast over `like` [b ...]."""
    alpha, sigma = path.alpha_sigma(t)
    shape = (-1, *[1] * (like.dim() - 1))
    return alpha.float().to(like.device).view(shape), sigma.float().to(like.device).view(shape)


def add_noise(path: ProbabilityPath, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return `x_t = alpha_t x_0 + sigma_t eps` [b ...] at timesteps [b]."""
    alpha, sigma = alpha_sigma_like(path, t, x0)
    return alpha * x0 + sigma * eps


def trailing_timesteps(path: ProbabilityPath, count: int) -> list[int]:
    """Return `count` evenly spaced timesteps that include the last: 999, 979, ..., 19 for 50 (arXiv 2305.08891, table 2).

    Raises:
        ValueError: `count` is less than one, or more than `path.num_timesteps`.
    """
    total = path.num_timesteps
    if not 1 <= count <= total:
        raise ValueError(f"sampling steps must be 1 .. {total}, got {count}")
    return [round(total - i * total / count) - 1 for i in range(count)]
