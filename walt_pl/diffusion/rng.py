"""Every random number of a training step, from (seed, optimiser step, index in the global batch).

The draws do not depend on the number of ranks, workers or restarts. A checkpoint need not hold generator states.
"""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.transfer import to_device

_MASK = (1 << 64) - 1


def splitmix64(*numbers: int) -> int:
    """Return a 64-bit hash of integers (SplitMix64's finaliser over a running state): near inputs give unrelated outputs."""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by the hash of `numbers`."""
    seed = splitmix64(*numbers)
    return torch.Generator().manual_seed(seed - (1 << 64) if seed >> 63 else seed)


class PerSampleRNG:
    """Random draws of one training step, with a generator for each sample.

    Args:
        seed: the run's seed.
        step: optimiser step (number of batches so far; two optimisers do not count twice).
        global_batch_index: index of each sample in the global batch, int64 [s], on the CPU.
        device: device of the results; they are drawn on the CPU. The device of `global_batch_index` when None.
    """

    def __init__(self, seed: int, step: int, global_batch_index: Tensor, device: torch.device | None = None) -> None:
        self.device = global_batch_index.device if device is None else device
        self._generators = [seeded_generator(seed, step, index) for index in global_batch_index.tolist()]

    def select(self, rows: slice) -> "PerSampleRNG":
        """Return the draws of some of the samples. They share their generators with this object."""
        part = copy(self)
        part._generators = self._generators[rows]
        return part

    def rand(self) -> Tensor:
        """Draw a number in [0, 1) for each sample, float32 [s]."""
        # An explicit dtype: an engine of another precision may have changed torch's default.
        return self._stack(lambda g: torch.rand((), generator=g, dtype=torch.float32), torch.float32)

    def bernoulli(self, probability: float) -> Tensor:
        """Draw true with probability `probability`, bool [s]."""
        return self.rand() < probability

    def randint(self, high: int) -> Tensor:
        """Draw uniformly from 0 .. high - 1, int64 [s]."""
        return self._stack(lambda g: torch.randint(high, (), generator=g), torch.int64)

    def randperm(self, total: int, count: int) -> Tensor:
        """Draw `count` different numbers of 0 .. total - 1 for each sample, in random order, int64 [s count]."""
        return self._stack(lambda g: torch.randperm(total, generator=g)[:count], torch.int64)

    def randn(self, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Draw standard normal noise, float32, of one shape of `shapes` for each sample."""
        pairs = zip(self._generators, shapes, strict=True)
        return [to_device(torch.randn(tuple(shape), generator=g, dtype=torch.float32), self.device) for g, shape in pairs]

    def randn_frames(self, layout: FrameLayout, shape: Sequence[int]) -> Tensor:
        """Draw standard normal noise for every frame of the samples, float32 [f c h w], where `shape` is [c h w]."""
        frames = [layout.frames] * layout.videos + [1] * layout.images
        return torch.cat(self.randn([(count, *shape) for count in frames]))

    def _stack(self, draw: Callable[[torch.Generator], Tensor], dtype: torch.dtype) -> Tensor:
        if not self._generators:
            return torch.zeros(0, device=self.device, dtype=dtype)
        return to_device(torch.stack([draw(g) for g in self._generators]), self.device)
