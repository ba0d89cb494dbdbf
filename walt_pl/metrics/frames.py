"""Figures of frames: distances, and how sharp they are."""

import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of clips [b 3 t h w] in -1..1 (peak to peak 2), in dB, float32 [b]."""
    error = (x.float() - y.float()).square().flatten(1).mean(dim=1)
    return 10 * (4 / error.clamp(min=1e-10)).log10()


def high_frequency_energy(x: Tensor) -> Tensor:
    """Energy of clips [b 3 t h w] in waves of less than four pixels along a row or a column, summed over a clip, float32 [b].

    Squared error makes reconstructions smooth: their share of the originals' energy falls below one.
    """
    energy = torch.fft.fft2(x.float(), norm="ortho").abs().square()
    rows, columns = (torch.fft.fftfreq(side, device=x.device).abs() > 0.25 for side in x.shape[-2:])
    return (energy * (rows[:, None] | columns)).flatten(1).sum(dim=1)
