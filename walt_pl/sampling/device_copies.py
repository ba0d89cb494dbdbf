"""Copies between the CPU and a GPU that do not wait for the work that the GPU has in its queue."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`. From the CPU to a GPU it travels from pinned memory, which torch keeps until the copy has ended."""
    if x.device.type != "cpu" or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_pinned(x: Tensor) -> Tensor:
    """Start the copy of a GPU's tensor to pinned memory. It can be read after an event that is recorded after this call."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
