"""Metrics of frames: PSNR, and high-frequency energy as a measure of sharpness."""

import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of clips in dB.

    Args:
        x: clips [b 3 t h w] in -1..1 (peak to peak 2).
        y: clips [b 3 t h w] in -1..1.

    Returns:
        PSNR of each clip, float32 [b]; 106 dB for equal clips, since the squared error is at least 1e-10.
    """
    error = (x.float() - y.float()).square().flatten(1).mean(dim=1)
    return 10 * (4 / error.clamp(min=1e-10)).log10()


def high_frequency_energy(x: Tensor) -> Tensor:
    """Return the energy of clips in waves of less than four pixels along a row or a column.

    Training with squared error makes reconstructions smooth: their energy is below that of the originals.

    Args:
        x: clips [b 3 t h w].

    Returns:
        Energy summed over each clip, float32 [b].
    """
    energy = torch.fft.fft2(x.float(), norm="ortho").abs().square()
    rows, columns = (torch.fft.fftfreq(side, device=x.device).abs() > 0.25 for side in x.shape[-2:])
    return (energy * (rows[:, None] | columns)).flatten(1).sum(dim=1)
