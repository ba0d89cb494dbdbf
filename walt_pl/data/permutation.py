"""Endless permutations of items and of buckets, determined by a seed."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NOTHING: NDArray[np.int64] = np.empty(0, np.int64)
"""An empty array of item numbers."""


class EndlessPermutation:
    """The numbers 0..count-1, each once per epoch, every epoch in a new order that follows from (seed, epoch).

    Numbers can be left out without a change to the order of the others. Only the order of the epoch that was last asked for is kept,
    as an array.

    Args:
        count: Number of items.
        seed: One or more numbers, at least 0.
        left_out: Numbers that are skipped, ascending.
    """

    def __init__(self, count: int, *seed: int, left_out: NDArray[np.int64] = NOTHING) -> None:
        self.count = count
        self.used = count - len(left_out)
        self.seed = seed
        self._left_out = left_out
        self._pass = -1
        self._order = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> tuple[int, int]:
        """Return the item at a position of the endless sequence, and the epoch of the position."""
        epoch, place = divmod(position, self.used)
        if epoch != self._pass:
            self._order = self._whole(epoch)
            if len(self._left_out):
                self._order = self._order[self._comes(self._order)]
            self._pass = epoch
        return int(self._order[place]), epoch

    def mark(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position, and its place in that epoch's full order.

        The place counts the numbers before the position, also those that are left out.
        """
        epoch, place = divmod(position, self.used)
        if place and len(self._left_out):
            place = int(np.flatnonzero(self._comes(self._whole(epoch)))[place - 1]) + 1
        return epoch, place

    def position(self, epoch: int, place: int) -> int:
        """Return the position of a mark, also of a mark that was made while other numbers were left out."""
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
    """The bucket of every step, in an order that follows from (seed, step).

    Each bucket comes as often as its share of the samples requires. Within a round of `steps` steps, a bucket of share p comes
    p * steps times, rounded up or down at random.

    Args:
        shares: Share of each bucket, in any unit; at least 0 and not all 0.
        steps: Steps of a round.
        seed: At least 0.
    """

    def __init__(self, shares: Sequence[int], steps: int, seed: int) -> None:
        self._ends = np.cumsum(shares) / sum(shares)
        self._only = next(number for number, share in enumerate(shares) if share) if np.count_nonzero(shares) == 1 else None
        self._steps = steps
        self._seed = seed
        # Two rounds: the loader may read a round ahead of the training step.
        self._round = lru_cache(maxsize=2)(self._draw_round)

    def __getitem__(self, step: int) -> int:
        """Return the bucket of a step."""
        if self._only is not None:
            return self._only
        number, place = divmod(step, self._steps)
        return int(self._round(number)[place])

    def _draw_round(self, number: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, 2, number])
        # Systematic sampling: evenly spaced points with one random offset, in a random order.
        points = (rng.permutation(self._steps) + rng.random()) / self._steps
        return np.searchsorted(self._ends, points, side="right")
