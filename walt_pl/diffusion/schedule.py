"""The forward process: discrete variance-preserving noise with zero terminal SNR, and the velocity parameterisation."""

import torch
from torch import Tensor


class Schedule:
    """``x_t = sqrt(g) x_0 + sqrt(1 - g) eps`` with ``g = abar(n)``, n = 0 .. N-1, linear betas 1e-4 -> 0.02.

    The table is float64 and no buffer: engines that cast modules to bfloat16 would cast it too. Noise levels are integers per sample or
    frame; they broadcast over the other dimensions.

    Args:
        steps: N.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al., arXiv 2305.08891, algorithm 1).
    """

    def __init__(self, steps: int = 1000, zero_terminal_snr: bool = True) -> None:
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        root = torch.cumprod(1 - betas, dim=0).sqrt()
        if zero_terminal_snr:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        self.steps = steps
        self.abar = root.square()

    def roots(self, n: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(g) and sqrt(1 - g) of levels n [b], float32, shaped to broadcast over ``like`` [b ...]."""
        g = self.abar.to(n.device)[n] if n.device.type != "mps" else self.abar[n.cpu()]
        shape = (-1, *[1] * (like.dim() - 1))
        return g.sqrt().float().to(like.device).view(shape), (1 - g).sqrt().float().to(like.device).view(shape)

    def add_noise(self, x0: Tensor, eps: Tensor, n: Tensor) -> Tensor:
        """x_t of clean ``x0`` [b ...] at levels n [b]."""
        a, s = self.roots(n, x0)
        return a * x0 + s * eps

    def velocity(self, x0: Tensor, eps: Tensor, n: Tensor) -> Tensor:
        """``v = sqrt(g) eps - sqrt(1-g) x_0`` (Salimans & Ho, arXiv 2202.00512; the paper's print swaps the roots)."""
        a, s = self.roots(n, x0)
        return a * eps - s * x0

    def clean(self, xt: Tensor, v: Tensor, n: Tensor) -> Tensor:
        """``x_0 = sqrt(g) x_t - sqrt(1-g) v``."""
        a, s = self.roots(n, xt)
        return a * xt - s * v

    def noise(self, xt: Tensor, v: Tensor, n: Tensor) -> Tensor:
        """``eps = sqrt(g) v + sqrt(1-g) x_t``."""
        a, s = self.roots(n, xt)
        return a * v + s * xt

    def trailing(self, count: int) -> list[int]:
        """``count`` evenly spaced levels that include the last: 999, 979, ..., 19 for 50 (arXiv 2305.08891, table 2)."""
        if not 1 <= count <= self.steps:
            raise ValueError(f"sampling steps must be 1 .. {self.steps}, got {count}")
        return [round(self.steps - i * self.steps / count) - 1 for i in range(count)]
