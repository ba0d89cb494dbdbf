"""Frechet distance of features: FVD of clips (arXiv 1812.01717) and FID of images (arXiv 1706.08500)."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch import nn

from walt_pl.metrics.collected_rows import CollectedRowsMetric
from walt_pl.metrics.metric import Better

BLOCK = 1024
"""Rows that are added to the float64 sums at a time."""


class _Rows(nn.Identity):
    """Give torchmetrics rows in place of a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class FrechetDistance(CollectedRowsMetric):
    """Frechet distance of two Gaussians with the mean `m` and the covariance `C` of each side.

    `|m_r - m_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2))`, covariances divided by n - 1, in float64.
    """

    real_side: ClassVar[bool] = True
    better: ClassVar[Better] = "min"

    def compute(self) -> float:
        """Return the distance. Few clips raise it: warn where a side has fewer clips than features."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        sides = {real: self.collect(real=real) for real in (True, False)}
        width = sides[True].shape[1]
        fewest = min(len(rows) for rows in sides.values())
        if fewest <= width:
            warnings.warn(
                f"{self.name}: a side has {fewest} clips, and a clip {width} features: so few clips raise the distance. "
                f"Take more than {width} clips, or compare with figures of equally many",
                stacklevel=2,
            )
        # Each rank computes with the rows of all ranks. Synchronised sums would count each row once for every rank.
        distance = FrechetInceptionDistance(_Rows(width), sync_on_compute=False)
        for real, rows in sides.items():
            for block in rows.split(BLOCK):
                # torchmetrics rounds its result to the dtype of the last rows.
                distance.update(block.double(), real=real)
        return float(distance.compute())


class FVD(FrechetDistance):
    """Frechet video distance."""

    name: ClassVar[str] = "fvd"
    needs: ClassVar[str] = "video_features"


class FID(FrechetDistance):
    """Frechet inception distance of images, or of every frame of clips."""

    name: ClassVar[str] = "fid"
    needs: ClassVar[str] = "image_features"
