"""Seconds and operations of a call."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from walt_pl.sampling.cuda_graph import record_cuda_graph

Call = Callable[[], Any]
WARM_UP, LEAST, MOST, SPAN, LONG = 3, 5, 50, 0.6, 0.5
"""Calls before the first that counts, least and most calls that count, seconds that they should fill; two are enough of longer calls."""


def time_call(call: Call, device: torch.device, quick: bool = False, warm_up: int = WARM_UP) -> float:
    """Return the median seconds of a call; on a GPU by events, so that the time to launch hides behind the work as in training."""
    if quick:
        call()
        return _elapsed(call)
    for _ in range(warm_up):
        call()
    if device.type != "cuda":
        return statistics.median(_elapsed(call) for _ in range(LEAST))
    torch.cuda.synchronize()
    one = _elapsed(lambda: (call(), torch.cuda.synchronize()))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(1 + max(2 if one > LONG else LEAST, min(MOST, int(SPAN / one))))]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / 1e3


def time_replays(call: Call, device: torch.device, quick: bool = False) -> tuple[float, str]:
    """Return the median seconds that a GPU works on a call, without the time to launch.

    Launching small kernels from Python takes longer than their work. A CUDA graph of the call launches them at once.

    Args:
        call: forward, or forward and backward. It sets gradients to None before, so that the graph owns their memory.
        device: a GPU; calls are timed on others.
        quick: as in `time_call`.

    Returns:
        Seconds, and what was timed: `replays` of the graph, or `calls` where there is none.
    """
    if quick or device.type != "cuda":
        return time_call(call, device, quick), "calls"
    try:
        replay, _ = record_cuda_graph(call, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an operator cannot be captured, such as one that waits for the device
        return time_call(call, device), "calls"
    return time_call(replay, device), "replays"


def _elapsed(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def count_flops(call: Call) -> int:
    """Return the operations of a call: matrix products and convolutions, by PyTorch's formulas. Kernels of Triton count for nothing."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
