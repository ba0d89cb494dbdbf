"""Figures of frames: PSNR against torchmetrics, energy against waves whose energy is known."""

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from walt_pl.metrics.frames import high_frequency_energy, psnr


def test_psnr_of_each_clip_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 5, 8, 8, generator=generator) * 2 - 1
    y = x + torch.tensor([0.01, 0.1, 0.5]).view(3, 1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    theirs = [peak_signal_noise_ratio(b, a, data_range=2.0) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(psnr(x, y), torch.stack(theirs))


@pytest.mark.parametrize(("row_waves", "column_waves", "high"), [(3, 0, False), (0, 3, False), (5, 0, True), (1, 6, True), (4, 4, False)])
def test_high_frequency_energy_equals_that_of_waves_under_four_pixels(row_waves: int, column_waves: int, high: bool) -> None:
    """A wave of amplitude a has the energy a^2 / 2 at each pixel; four waves in 16 pixels are four pixels long."""
    place = torch.arange(16) * 2 * math.pi / 16
    wave = 0.6 * torch.cos(row_waves * place[:, None] + column_waves * place) + 0.3
    energy = high_frequency_energy(wave.expand(2, 3, 5, 16, 16))
    torch.testing.assert_close(energy, torch.full((2,), 0.18 * 3 * 5 * 16 * 16 * high), atol=1e-3, rtol=1e-4)
