"""Choose the extractors that give the rows of chosen metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol


@dataclass(frozen=True)
class ExtractorOptions:
    """Options of the extractors."""

    files: str | dict[str, str] | None = None
    kind: str | None = None
    sha256: str | dict[str, str] | None = None


class Pixels(Extractor):
    """PSNR of each clip."""

    kind: ClassVar[str] = "pixels"
    gives: ClassVar[tuple[str, ...]] = ("psnr",)
    of_pairs: ClassVar[bool] = True

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        assert batch.originals is not None
        errors = [(x.float() - y.float()).square().mean() for x, y in zip(batch.clips, batch.originals, strict=True)]
        return {"psnr": 10 * (255**2 / torch.stack(errors).clamp(min=1e-10)).log10()[:, None]}


def choose_extractors(
    metrics: Sequence[type[Metric]], options: ExtractorOptions, protocol: EvaluationProtocol, of_images: bool, device: str = "cpu"
) -> list[Extractor]:
    """Return the extractors that the metrics need."""
    return [Pixels()]
