"""The spike guard's decision on the device, without the host: the twin of `SpikeGuard`'s own for optimisers that skip a step there."""

from collections.abc import Iterable

import torch
from torch import Tensor

FLOOR = 0.1
"""Least spread of the logarithm. Without it, a very steady training would have spikes of less than a tenth."""


class SpikeDetector:
    """Compare loss and gradient norm with their last values, as `SpikeGuard` does, in tensors alone.

    Args:
        history: last values of loss and gradient norm, oldest first.
        window: number of values for the median.
        deviations: number of deviations above the median that counts as a spike.
        device: device of the values.
    """

    def __init__(self, history: Iterable[Iterable[float]], window: int, deviations: float, device: torch.device) -> None:
        self.window = window
        self.deviations = deviations
        rows = [list(values)[-window:] for values in history]
        known = torch.tensor([[*row, *[torch.inf] * (window - len(row))] for row in rows], dtype=torch.float64, device=device)
        self._logarithms = _log(known)  # a ring; inf where there is no value yet
        self._count = torch.tensor([len(row) for row in rows], device=device)

    def judge(self, seen: Tensor) -> Tensor:
        """Return whether a step is bad, and record its values.

        Args:
            seen: loss and gradient norm, [2].

        Returns:
            Bool scalar: one of the values is not finite, or a spike.
        """
        finite, logarithm = seen.isfinite(), _log(seen.double())
        known = self._count.clamp(max=self.window)
        middle = _median(self._logarithms, known)
        spread = (1.4826 * _median((self._logarithms - middle[:, None]).abs(), known)).clamp(min=FLOOR)
        spike = (known >= self.window // 4) & ((logarithm - middle) / spread > self.deviations)
        place = (self._count % self.window)[:, None]
        recorded = torch.where(finite[:, None], logarithm[:, None], self._logarithms.gather(1, place))
        self._logarithms.scatter_(1, place, recorded)
        self._count += finite
        return (~finite | spike).any()


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=1e-12).log()


def _median(values: Tensor, known: Tensor) -> Tensor:
    """Return the median of the `known` [n] smallest values of each row [n w]; the rest are inf, where there is no value."""
    ordered = values.sort(dim=1).values
    middle = torch.stack([(known - 1).clamp(min=0) // 2, known // 2], dim=1)
    return ordered.gather(1, middle).mean(dim=1)
