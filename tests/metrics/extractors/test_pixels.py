"""PSNR and SSIM of clips: by hand, with the formula written out."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.pixels import Pixels
from walt_pl.metrics.protocol import EvaluationProtocol


def pair(frames: int = 3, rows: int = 20, columns: int = 28, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    original = torch.randint(0, 256, (frames, rows, columns, 3), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-20, 21, original.shape, generator=generator)
    return (original.long() + noise).clamp(0, 255).to(torch.uint8), original


def ssim_by_hand(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, of each channel of each frame. torchmetrics reflects the borders, and counts them."""
    values = []
    for a, b in zip(
        x.double().permute(0, 3, 1, 2).flatten(0, 1).numpy(), y.double().permute(0, 3, 1, 2).flatten(0, 1).numpy(), strict=True
    ):
        blur = lambda image: gaussian_filter(image, 1.5, mode="mirror", radius=5)  # noqa: E731
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append(np.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))
    return float(np.mean(values))


def test_pixels_psnr_and_ssim_equal_their_formulas() -> None:
    pairs = [pair(), pair(frames=1, rows=30, columns=16, seed=1)]
    rows = Pixels(ExtractorSettings(EvaluationProtocol()))(ClipBatch([x for x, _ in pairs], [y for _, y in pairs]))
    assert rows["psnr"].shape == rows["ssim"].shape == (2, 1) and rows["psnr"].dtype == rows["ssim"].dtype == torch.float32
    for i, (x, y) in enumerate(pairs):
        error = float((x.double() - y.double()).square().mean())
        assert rows["psnr"][i].item() == pytest.approx(10 * math.log10(255**2 / error), rel=1e-5)
        assert rows["ssim"][i].item() == pytest.approx(ssim_by_hand(x, y), abs=1e-5)


def test_pixels_of_equal_clips_are_best() -> None:
    clip, _ = pair()
    rows = Pixels(ExtractorSettings(EvaluationProtocol()))(ClipBatch([clip], [clip]))
    assert rows["ssim"].item() == pytest.approx(1) and rows["psnr"].item() > 100


def test_pixels_refuses_clips_without_originals_and_of_unlike_shape() -> None:
    pixels, (clip, original) = Pixels(ExtractorSettings(EvaluationProtocol())), pair()
    with pytest.raises(ValueError, match="compares each clip with its original, and these clips have none"):
        pixels(ClipBatch([clip]))
    with pytest.raises(ValueError, match=r"clip 1 of the batch has 3x20x28 \(frames, rows, columns\), its original 2x20x28; set --size"):
        pixels(ClipBatch([clip, clip], [original, original[:2]]))
    with pytest.raises(ValueError, match="frames of at least 11x11 pixels, got 10x28"):
        pixels(ClipBatch([clip[:, :10]], [original[:, :10]]))
