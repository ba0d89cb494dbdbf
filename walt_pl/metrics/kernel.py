"""Kernel distance of features: KVD of clips (arXiv 1812.01717) and KID of images (arXiv 1801.01401)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from walt_pl.metrics.collected_rows import CollectedRowsMetric
from walt_pl.metrics.metric import Better

DEGREE, COEF = 3, 1.0
BLOCK_VALUES = 2**25
"""Values of a block of the kernel matrix (256 MB). The whole matrix of 50,000 clips would take 20 GB."""


class KernelDistance(CollectedRowsMetric):
    """Unbiased squared maximum mean discrepancy with the kernel `k(x, y) = (x.y / d + 1)^3`.

    `mean_{i != j} k(r_i, r_j) + mean_{i != j} k(g_i, g_j) - 2 mean_{i, j} k(r_i, g_j)`, over all rows, as in TATS.
    It equals torchmetrics' KernelInceptionDistance with one subset of all rows, for any two numbers of rows.
    A set against itself gives a value below 0, since the last mean has the diagonal and the others do not.
    """

    real_side: ClassVar[bool] = True
    better: ClassVar[Better] = "min"

    def compute(self) -> float:
        """Return the squared discrepancy. It is about 0, of either sign, for two sets of one distribution."""
        real, generated = (self.collect(real=side).double() for side in (True, False))
        within = sum(_mean_of_others(rows) for rows in (real, generated))
        return within - 2 * _sum_of_kernel(real, generated) / (len(real) * len(generated))

    def settings(self) -> dict[str, Any]:
        """Return the kernel and the number of subsets: published KIDs often are means over 100 subsets of 1,000 images."""
        return {"degree": DEGREE, "gamma": "1/d", "coef": COEF, "subsets": 1}


def _mean_of_others(rows: Tensor) -> float:
    """Return the mean of the kernel over all pairs of unlike rows."""
    own = (rows.square().sum(dim=1) / rows.shape[1] + COEF) ** DEGREE
    return (_sum_of_kernel(rows, rows) - float(own.sum())) / (len(rows) * (len(rows) - 1))


def _sum_of_kernel(x: Tensor, y: Tensor) -> float:
    """Return the sum of the kernel over all pairs."""
    from torchmetrics.image.kid import poly_kernel

    blocks = x.split(max(1, BLOCK_VALUES // len(y)))
    return sum(float(poly_kernel(block, y, degree=DEGREE, coef=COEF).sum()) for block in blocks)


class KVD(KernelDistance):
    """Kernel video distance."""

    name: ClassVar[str] = "kvd"
    needs: ClassVar[str] = "video_features"


class KID(KernelDistance):
    """Kernel inception distance of images."""

    name: ClassVar[str] = "kid"
    needs: ClassVar[str] = "image_features"
