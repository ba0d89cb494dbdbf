"""PSNR and SSIM of clips and their originals: formulas, no file."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, pairs_of
from walt_pl.metrics.frames import psnr

SSIM_WINDOW = 11
"""Side of the Gaussian window of SSIM in pixels (Wang et al. 2004)."""


class Pixels(ConfiguredExtractor):
    """PSNR over all pixels of a clip, and the mean SSIM of its frames, of uint8 RGB.

    SSIM is that of torchmetrics: it counts the borders, where the window sees a reflected picture.
    """

    kind = "pixels"
    gives = ("psnr", "ssim")
    of_pairs = True

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "psnr": "mean squared error of the clip",
            "ssim": "11x11 Gaussian, sigma 1.5, reflected borders, mean over RGB",
        }

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        pairs = pairs_of(batch, "psnr and ssim", SSIM_WINDOW)
        return {"psnr": torch.stack([_psnr(*pair) for pair in pairs]), "ssim": torch.stack([self._ssim(*pair) for pair in pairs])}

    def _ssim(self, clip: Tensor, original: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure

        frames, wanted = (rearrange(one, "t h w c -> t c h w").to(self.device).float() for one in (clip, original))
        values = structural_similarity_index_measure(frames, wanted, data_range=255.0, reduction="none")
        assert isinstance(values, Tensor)  # no map of the image was asked for
        return values.float().mean().cpu().reshape(1)


def _psnr(clip: Tensor, original: Tensor) -> Tensor:
    x, y = (rearrange(one, "t h w c -> 1 c t h w").float() / 127.5 - 1 for one in (clip, original))
    return psnr(x, y)
