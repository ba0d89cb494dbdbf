"""Find metrics by name."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from walt_pl.metrics.metric import Better, Metric


class PSNR(Metric):
    """Peak signal-to-noise ratio in dB, the mean over clips."""

    name: ClassVar[str] = "psnr"
    needs: ClassVar[str] = "psnr"
    real_side: ClassVar[bool] = False
    better: ClassVar[Better] = "max"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows: list[Tensor] = []

    def update(self, rows: Tensor, *, real: bool) -> None:
        self.rows.append(rows)

    def compute(self) -> float:
        return float(torch.cat(self.rows).double().mean())


def choose_metrics(text: str) -> list[type[Metric]]:
    """Return the metrics of names between commas.

    Raises:
        ValueError: there is no metric of a name.
    """
    for name in text.split(","):
        if name != PSNR.name:
            raise ValueError(f'there is no metric "{name}"; There are: psnr')
    return [PSNR]
