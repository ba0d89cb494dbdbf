"""Metrics that are means over clips: PSNR, SSIM and LPIPS of pairs, CLIP similarity of clip and caption."""

from __future__ import annotations

from typing import ClassVar

from walt_pl.metrics.collected_rows import CollectedRowsMetric
from walt_pl.metrics.metric import Better


class MeanOfClips(CollectedRowsMetric):
    """Mean of a row of one value for each clip, in float64. One clip is enough."""

    real_side: ClassVar[bool] = False
    better: ClassVar[Better] = "max"

    def compute(self) -> float:
        """Return the mean over clips."""
        return float(self.collect(real=False, at_least=1).double().mean())


class PSNR(MeanOfClips):
    """Peak signal-to-noise ratio in dB."""

    name: ClassVar[str] = "psnr"
    needs: ClassVar[str] = "psnr"


class SSIM(MeanOfClips):
    """Structural similarity."""

    name: ClassVar[str] = "ssim"
    needs: ClassVar[str] = "ssim"


class LPIPS(MeanOfClips):
    """Learned perceptual distance."""

    name: ClassVar[str] = "lpips"
    needs: ClassVar[str] = "lpips"
    better: ClassVar[Better] = "min"


class CLIPSimilarity(MeanOfClips):
    """Cosine similarity of a clip's frames and its caption."""

    name: ClassVar[str] = "clip"
    needs: ClassVar[str] = "clip_similarity"
