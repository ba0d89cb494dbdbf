"""Metrics that keep the rows of all clips until the end, so that neither blocks nor ranks show in the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

from walt_pl.metrics.metric import Metric


class CollectedRowsMetric(Metric):
    """A metric of all rows at once. Rows of 50,000 clips with 2,048 values are 400 MB.

    Sums of blocks would depend on the cut in their last bits. Rows in one tensor do not.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._blocks: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, rows: Tensor, *, real: bool) -> None:
        """Add rows, float32 [n d], of real or of generated clips."""
        assert rows.ndim == 2, f"{self.name}: rows have the shape {tuple(rows.shape)}, not [n d]"
        self._blocks[real].append(rows.detach().cpu())

    def collect(self, *, real: bool, at_least: int = 2) -> Tensor:
        """Return all rows of a side, [n d], in the order of the updates.

        Raises:
            ValueError: there are fewer than `at_least` rows, or some are nan or infinite.
        """
        side = "real" if real else "generated"
        found = sum(len(block) for block in self._blocks[real])
        if found < at_least:
            raise ValueError(
                f"{self.name}: {found} {side} clip{'s' * (found != 1)} found, at least {at_least} wanted: give more {side} clips"
            )
        rows = torch.cat(self._blocks[real])
        bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{self.name}: {self.needs} of {len(bad)} of {found} {side} clips are nan or infinite (first: clip {bad[0]}): "
                "check the file of the extractor and its precision"
            )
        return rows
