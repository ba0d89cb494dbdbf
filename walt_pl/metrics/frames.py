"""Distances between frames."""

from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of clips [b 3 t h w] in -1..1 (peak to peak 2), in dB, float32 [b]."""
    error = (x.float() - y.float()).square().flatten(1).mean(dim=1)
    return 10 * (4 / error.clamp(min=1e-10)).log10()
