"""The convolutions of a network alone: recorded in one call, timed one by one."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.clock import time_call

CONVOLUTION, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
Recorded = tuple[Any, tuple[Any, ...]]
"""An operation and its arguments; a tensor stands as its shape and dtype."""


class Recorder(TorchDispatchMode):
    """Count the convolutions that run in this context, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Recorded] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (CONVOLUTION, BACKWARD):
            self.calls[func, tuple(map(_describe, args))] += 1
        return func(*args, **(kwargs or {}))


def _describe(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else tuple(value) if isinstance(value, list) else value


def record(call: Callable[[], Any]) -> Counter[Recorded]:
    with Recorder() as recorder:
        call()
    return recorder.calls


def time_convolutions(calls: Counter[Recorded], device: torch.device, quick: bool) -> float:
    """Return the seconds of all recorded convolutions, without bias, on random channels-last tensors."""
    return sum(count * time_call(_replay(call, device), device, quick, warm_up=2) for call, count in calls.items())


def _replay(call: Recorded, device: torch.device) -> Callable[[], Any]:
    func, described = call
    tensors = 2 if func is CONVOLUTION else 3
    made = [_random(*described[place], device) for place in range(tensors)]
    if func is CONVOLUTION:
        return lambda: func(*made, None, *described[3:])
    wanted = [*described[-1][:2], False]  # no gradient of the bias
    return lambda: func(*made, None, *described[4:-1], wanted)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    last = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    return torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=last)
