"""C3D of the Inception Score on UCF-101 (the torchscript of StyleGAN-V, after the Chainer model of TGANv2)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings, compute_by_shape, exact_arithmetic
from walt_pl.metrics.extractors.torchscript import call_torchscript, load_torchscript
from walt_pl.metrics.extractors.weight_file import read_weight_file

FRAMES = 16
"""Frames that C3D takes: its first linear layer has their size."""


class C3D(ConfiguredExtractor):
    """Log-probabilities of the 101 classes. The torchscript resizes, turns to BGR and subtracts its mean itself.

    Raises:
        ValueError: the file is missing, has another hash, or is no torchscript.
    """

    kind = "c3d"
    gives = ("class_logits",)
    takes_file = True
    of_images = False

    def __init__(self, settings: ExtractorSettings) -> None:
        super().__init__(settings)
        file = read_weight_file(self.kind, settings, is_code=True)
        self.network = load_torchscript(file, self.device)
        self._file = file.identity()

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._file, "resize": "inside"}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        for clip in batch.clips:
            if len(clip) != FRAMES:
                raise ValueError(f"c3d wants clips of exactly {FRAMES} frames, got {len(clip)}; set --frames {FRAMES}")
        videos = [rearrange(clip, "t h w c -> c t h w").contiguous() for clip in batch.clips]  # uint8, as StyleGAN-V calls it
        probabilities = compute_by_shape(videos, self._compute)
        sums = probabilities.sum(dim=1)
        if bool((probabilities < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise ValueError("the torchscript of c3d gives no probabilities (they are at least 0 and sum to 1); is it c3d_ucf101.pt?")
        # The metric applies a softmax, which undoes the logarithm. A probability of 0 would give 0 * -inf there.
        return {"class_logits": probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()}

    def _compute(self, videos: Tensor) -> Tensor:
        with exact_arithmetic(self.device):
            return call_torchscript(self.network, self.kind, videos.to(self.device))
