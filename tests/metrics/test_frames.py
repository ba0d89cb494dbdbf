"""Distances between frames, against torchmetrics."""

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from walt_pl.metrics.frames import psnr


def test_psnr_of_each_clip_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 5, 8, 8, generator=generator) * 2 - 1
    y = x + torch.tensor([0.01, 0.1, 0.5]).view(3, 1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    theirs = [peak_signal_noise_ratio(b, a, data_range=2.0) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(psnr(x, y), torch.stack(theirs))
