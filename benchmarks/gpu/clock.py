"""Seconds and operations of a call."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

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


def _elapsed(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def count_flops(call: Call) -> int:
    """Return the operations of a call: matrix products and convolutions, by PyTorch's formulas. Kernels of Triton count for nothing."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
