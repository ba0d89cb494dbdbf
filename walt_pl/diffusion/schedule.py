"""The forward process: discrete variance-preserving noise with zero terminal SNR, and the velocity parameterisation."""

import torch
from torch import Tensor

from walt_pl.diffusion.path import alpha_sigma_like


class NoiseSchedule:
    """Probability path (see `ProbabilityPath`): `x_t = sqrt(g) x_0 + sqrt(1 - g) eps` with `g = alphas_cumprod[t]`.

    Timesteps are 0 .. N - 1, betas linear from 1e-4 to 0.02. The network predicts the velocity v. The table is float64. It is not a
    buffer, since engines that cast modules to bfloat16 would cast it too.

    Args:
        num_timesteps: N.
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al., arXiv 2305.08891, algorithm 1).
    """

    def __init__(self, num_timesteps: int = 1000, zero_terminal_snr: bool = True) -> None:
        betas = torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64)
        root = torch.cumprod(1 - betas, dim=0).sqrt()
        if zero_terminal_snr:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        self.num_timesteps = num_timesteps
        self.alphas_cumprod = root.square()
        self._tables = {self.alphas_cumprod.device: self.alphas_cumprod}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(g) and sqrt(1 - g) of timesteps [b], float64 [b]; they are on the CPU for devices without float64."""
        if t.device.type == "mps":
            t = t.cpu()
        if t.device not in self._tables:
            # Kept, since each copy from the CPU waits for the device.
            self._tables[t.device] = self.alphas_cumprod.to(t.device)
        g = self._tables[t.device][t]
        return g.sqrt(), (1 - g).sqrt()

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return `v = sqrt(g) eps - sqrt(1-g) x_0` (Salimans & Ho, arXiv 2202.00512; the W.A.L.T paper swaps the two roots)."""
        a, s = alpha_sigma_like(self, t, x0)
        return a * eps - s * x0

    def predict_x0(self, xt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return `x_0 = sqrt(g) x_t - sqrt(1-g) v`."""
        a, s = alpha_sigma_like(self, t, xt)
        return a * xt - s * output

    def predict_eps(self, xt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return `eps = sqrt(g) v + sqrt(1-g) x_t`."""
        a, s = alpha_sigma_like(self, t, xt)
        return a * output + s * xt
