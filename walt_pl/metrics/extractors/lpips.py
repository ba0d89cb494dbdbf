"""LPIPS of clips and their originals (Zhang et al., arXiv 1801.03924), with the backbone VGG16."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings, check_finite, exact_arithmetic, pairs_of
from walt_pl.metrics.extractors.weight_file import read_state_dict, read_weight_file
from walt_pl.models.losses import LPIPS

LEAST_SIDE = 16
"""Pixels that VGG16's four poolings before its last features need."""
FRAMES_AT_ONCE = 16
"""Frames that are compared at once: VGG16's features of one frame of 256 x 256 take 100 MB."""


class PerceptualDistance(ConfiguredExtractor):
    """Mean LPIPS of the frames of a clip. The `lpips` package has the heads, the file is torchvision's VGG16.

    Raises:
        ValueError: the file is missing, has another hash, or is not the VGG16 state dict.
    """

    kind = "lpips"
    gives = ("lpips",)
    of_pairs = True
    takes_file = True

    def __init__(self, settings: ExtractorSettings) -> None:
        super().__init__(settings)
        file = read_weight_file(self.kind, settings, is_code=False)
        try:
            self.network = LPIPS(file.path, read_state_dict(file)).to(self.device)
        except ValueError as error:  # the autoencoder's option has the other name
            raise ValueError(str(error).replace("model.perceptual_weights", "--extractor")) from error
        self._file = file.identity()

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._file, "backbone": "vgg"}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        rows = [self._compare(*pair) for pair in pairs_of(batch, self.kind, LEAST_SIDE)]
        return {"lpips": check_finite(torch.stack(rows), self.kind)}

    def _compare(self, clip: Tensor, original: Tensor) -> Tensor:
        x, y = (rearrange(one, "t h w c -> t c h w").to(self.device).float() / 127.5 - 1 for one in (clip, original))
        with exact_arithmetic(self.device):
            parts = [self.network(*pair) for pair in zip(x.split(FRAMES_AT_ONCE), y.split(FRAMES_AT_ONCE), strict=True)]
        return torch.cat(parts).mean().float().cpu().reshape(1)
