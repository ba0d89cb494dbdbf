"""Endless permutations of items and of buckets, given by a seed."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NOTHING: NDArray[np.int64] = np.empty(0, np.int64)
"""Numbers of no item."""


class EndlessPermutation:
    """The numbers 0..count-1, each once per pass, every pass in a new order given by (seed, pass).

    Numbers can be left out without disturbing the order of the others. Only the order of the pass last asked for is kept, as
    an array.

    Args:
        count: How many items there are.
        seed: A number, or several, at least 0.
        left_out: Numbers that do not come, ascending.
    """

    def __init__(self, count: int, *seed: int, left_out: NDArray[np.int64] = NOTHING) -> None:
        self.count = count
        self.used = count - len(left_out)
        self.seed = seed
        self._left_out = left_out
        self._pass = -1
        self._order = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> tuple[int, int]:
        """Gives the item at a position of the endless sequence and the pass it belongs to."""
        epoch, place = divmod(position, self.used)
        if epoch != self._pass:
            self._order = self._whole(epoch)
            if len(self._left_out):
                self._order = self._order[self._comes(self._order)]
            self._pass = epoch
        return int(self._order[place]), epoch

    def mark(self, position: int) -> tuple[int, int]:
        """Gives the pass of a position, and how much of the order of all numbers, those left out too, lies behind it."""
        epoch, place = divmod(position, self.used)
        if place and len(self._left_out):
            place = int(np.flatnonzero(self._comes(self._whole(epoch)))[place - 1]) + 1
        return epoch, place

    def position(self, epoch: int, place: int) -> int:
        """Gives the position of a mark, also of one that was made while other numbers were left out."""
        if place and len(self._left_out):
            place = int(self._comes(self._whole(epoch)[:place]).sum())
        return epoch * self.used + place

    def _whole(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self.seed, epoch]).permutation(self.count)

    def _comes(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        comes = np.ones(self.count, np.bool_)
        comes[self._left_out] = False
        return comes[numbers]


class BucketOrder:
    """Which bucket every step is of: as often as its share of the samples says, in an order given by (seed, step).

    Within a round of `steps` steps a bucket of share p comes p * steps times, rounded up or down by chance.

    Args:
        shares: Of each bucket, at least 0 and not all 0; of any unit.
        steps: Steps of a round.
        seed: At least 0.
    """

    def __init__(self, shares: Sequence[int], steps: int, seed: int) -> None:
        self._ends = np.cumsum(shares) / sum(shares)
        self._only = next(number for number, share in enumerate(shares) if share) if np.count_nonzero(shares) == 1 else None
        self._steps, self._seed = steps, seed
        # The loader looks ahead of where the training stands.
        self._round = lru_cache(maxsize=2)(self._draw_round)

    def __getitem__(self, step: int) -> int:
        """The bucket of a step."""
        if self._only is not None:
            return self._only
        number, place = divmod(step, self._steps)
        return int(self._round(number)[place])

    def _draw_round(self, number: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, 2, number])
        # Systematic sampling: evenly spaced points, moved together, in a random order.
        points = (rng.permutation(self._steps) + rng.random()) / self._steps
        return np.searchsorted(self._ends, points, side="right")
