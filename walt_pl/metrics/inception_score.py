"""Inception score of generated clips or images (arXiv 1606.03498)."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch

from walt_pl.metrics.collected_rows import CollectedRowsMetric
from walt_pl.metrics.metric import Better

SPLITS = 10


class InceptionScore(CollectedRowsMetric):
    """Mean over 10 parts of `exp(mean_x KL(p(y|x) || p(y)))`, with `p(y)` of the part.

    Rows are logits or log-probabilities: a softmax leaves log-probabilities as they are.
    """

    name: ClassVar[str] = "is"
    needs: ClassVar[str] = "class_logits"
    real_side: ClassVar[bool] = False
    better: ClassVar[Better] = "max"

    def compute(self) -> float:
        """Return the score.

        Raises:
            ValueError: the rows cannot be cut into 10 parts of two or more, or are nan or infinite.
        """
        from torchmetrics.image.inception import InceptionScore as TorchmetricsScore

        rows = self.collect(real=False, at_least=2 * SPLITS)  # a part of one row has the score 1, whatever the row
        if len(rows.chunk(SPLITS)) != SPLITS:
            # Parts have equal sizes but the last one. torchmetrics takes fewer parts of 11 rows, without a word.
            raise ValueError(f"{self.name}: {len(rows)} generated clips cannot be cut into {SPLITS} parts: take a multiple of {SPLITS}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features")
            # Each rank computes with the rows of all ranks.
            score = TorchmetricsScore(torch.nn.Identity(), splits=SPLITS, sync_on_compute=False)
        score.update(rows.double())
        with torch.random.fork_rng(devices=[]):
            # The permutation is drawn from the global state of the CPU. `torch.manual_seed` would seed the GPUs, too.
            torch.default_generator.manual_seed(self.seed)
            return float(score.compute()[0])

    def settings(self) -> dict[str, Any]:
        """Return the number of parts, and the seed of their order."""
        return {"splits": SPLITS, "seed": self.seed}
