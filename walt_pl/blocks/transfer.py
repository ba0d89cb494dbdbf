"""Copies between host and device that let the host go on: it never waits for the device to finish its queue."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device`.

    A copy from ordinary memory to a GPU waits until the GPU has done all of its work. From pinned memory it joins the queue. torch's
    allocator keeps pinned memory until its copies are done, so the host may drop `x` at once.

    Args:
        x: any tensor; draws and facts of the host are on the CPU.
        device: device of the result.
    """
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)
    return x.to(device)


class HostCopy:
    """A copy of a device's tensor on its way to the host.

    `read` waits for this copy, and not for work that was queued after it. Queue more work between the two, and the device never idles.

    Args:
        x: tensor to copy; its present value counts, later changes in place do not.
    """

    def __init__(self, x: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if x.device.type != "cuda":
            self._value = x.detach().clone()
            return
        self._value = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._value.copy_(x.detach(), non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record()

    def read(self) -> Tensor:
        """Return the value, on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._value
