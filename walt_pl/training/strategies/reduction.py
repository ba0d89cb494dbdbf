"""Reductions over ranks that do not make the host wait for its device."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor

_host_groups: list[Any] = []
"""The group of all ranks that talk over the network without their devices, once it is needed."""
_time_out: list[timedelta | None] = [None]
"""Time-out of the strategy, which that group takes, too."""


def reduce_without_barrier(strategy: Strategy) -> None:
    """Replace the reduction of a strategy of several processes. Lightning's has a barrier before it, at which the host waits for the GPU.

    Args:
        strategy: the strategy of a trainer. DDP and ZeRO are of several processes.
    """
    if isinstance(strategy, DDPStrategy):
        _time_out[:] = [strategy._timeout]
        strategy.reduce = reduce  # type: ignore[method-assign]  # Lightning makes the strategy of "auto" itself


def reduce(tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
    """Reduce a tensor over all ranks, in place, in the order of the device's queue; the arguments are those of Lightning's strategies."""
    if not isinstance(tensor, Tensor) or not dist.is_initialized():
        return tensor
    if reduce_op not in ("mean", "avg"):
        dist.all_reduce(tensor, getattr(dist.ReduceOp, reduce_op.upper()) if isinstance(reduce_op, str) else reduce_op, group)
        return tensor
    dist.all_reduce(tensor, dist.ReduceOp.SUM, group)  # gloo has no mean
    mean = tensor / dist.get_world_size(group)
    return tensor.copy_(mean)


def max_on_host(*values: int) -> list[int]:
    """Return the largest of each value over all ranks; all ranks call it. They wait for each other, and no rank for its GPU."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    if not _host_groups and dist.get_backend() != "gloo":
        _host_groups.append(dist.new_group(backend="gloo", timeout=_time_out[0]))
    numbers = torch.tensor(values)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, _host_groups[0] if _host_groups else None)
    return numbers.tolist()
