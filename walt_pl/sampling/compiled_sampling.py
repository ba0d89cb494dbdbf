"""Compile the denoisers of a sampling on a GPU, where it makes enough clips to pay for that."""

import warnings
from collections.abc import Iterable
from functools import cache

import torch

from walt_pl.models.compiled_blocks import are_compiled, compile_blocks, find_obstacle
from walt_pl.sampling.stage_sampler import StageSampler

COMPILED_FROM = 64
"""Clips of a stage from which on it is compiled. On an H200, 16 clips of L took 7.9 s without and 3.6 s with compiled layers, and the
compilation about 15 s: it pays from 56 clips on."""


def compile_for(clips: int, samplers: Iterable[StageSampler], device: torch.device, backend: str = "inductor") -> None:
    """Compile the layers of all denoisers in place, if this pays for so many clips. It never does on a CPU.

    Each size of a batch is compiled when it is first run. A second call leaves compiled layers as they are.

    Args:
        clips: that each stage will make.
        samplers: of the stages.
        device: that they run on.
        backend: torch.compile's; tests take one that compiles no kernels.
    """
    if device.type != "cuda" or clips < COMPILED_FROM or not _can_compile(device):
        return
    for sampler in samplers:
        if not are_compiled(sampler.denoiser.blocks):
            compile_blocks(sampler.denoiser.blocks, backend)


@cache
def _can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works on a device; warn once if not."""
    obstacle = find_obstacle(device)
    if obstacle is not None:
        warnings.warn(
            f"sampling: torch.compile fails on {device}, and the layers run uncompiled, at about half the speed ({obstacle}); it needs "
            "Triton, a C compiler and Python's headers",
            stacklevel=3,
        )
    return obstacle is None
