"""Result of measuring one trained row of the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from walt_pl.paper.figure import Figure


@dataclass(frozen=True)
class Measured:
    """Figures of a row, and clips for its picture."""

    figures: Mapping[str, Figure]
    """Figure by name, such as iou, colour, psnr."""
    clips: Tensor | None = None
    """Clips to look at, pixels [b 3 t h w] in -1..1."""
    captions: Sequence[str] = ()
    """A line of text for each of these clips."""


class Measure(Protocol):
    """Function that measures the stages of one run folder."""

    def __call__(self, run: Path, index: Path, seed: int, short: bool) -> Measured:
        """Measure a run.

        Args:
            run: folder with the trained stages, see `walt_pl.sampling.cascade.Cascade.open`.
            index: of the embedded set, or of the data that the row was trained on.
            seed: of the samples' noise.
            short: take an eighth of the cases, at least eight.
        """
        ...
