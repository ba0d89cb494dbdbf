"""The protocol of a metric: rows of both sides in, one figure out. A module of this folder registers its metrics by defining them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor

Better = Literal["min", "max"]
"""The best value of a metric: the lowest or the highest."""


class Metric(ABC):
    """One figure of two sets of clips, or of one set.

    An extractor turns each clip into a row once. Metrics read rows, so that folds, ranks and resumed evaluations need no more than rows.

    Args:
        seed: seed of the draws inside of the metric (the order of the rows, in parts of which it is computed).
    """

    name: ClassVar[str]
    """Name in commands, cards and TensorBoard, such as fvd."""
    needs: ClassVar[str]
    """Name of the rows that it reads; an extractor gives them (`walt_pl.metrics.extractor.Extractor.gives`)."""
    real_side: ClassVar[bool]
    """True if it reads rows of the real clips, too. Rows of pairs (psnr) are rows of the generated side."""
    better: ClassVar[Better]

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def update(self, rows: Tensor, *, real: bool) -> None:
        """Add rows, float32 [n d], of real or of generated clips."""

    @abstractmethod
    def compute(self) -> float:
        """Return the figure of all rows so far.

        Raises:
            ValueError: there are too few rows.
        """

    def settings(self) -> dict[str, Any]:
        """Return the values beside the protocol that determine the figure, for the card (such as the number of splits)."""
        return {}
