"""Frames in front of a clip, for a convolution that is causal in time; from channels-last to channels-last."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_front(x: Tensor, past: int, before: Tensor | None = None, activation: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """Put frames in front of a clip, in one pass over memory.

    Args:
        x: clip [b c t h w], best in channels_last_3d memory.
        past: number of frames, if they repeat the first one.
        before: the frames [b c k h w], of the chunk before; None repeats the first output frame.
        activation: apply SiLU to x, not to `before`.
        dtype: of the result; None for that of x.

    Returns:
        [b c past+t h w] in channels_last_3d memory.
    """
    out: Tensor = _PadFront.apply(x, past, before, activation, dtype or x.dtype)
    return out


class _PadFront(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, past: int, before: Tensor | None, activation: bool, dtype: torch.dtype) -> Tensor:
        b, c, t, h, w = x.shape
        past = past if before is None else before.shape[2]
        out = torch.empty((b, c, past + t, h, w), dtype=dtype, device=x.device, memory_format=torch.channels_last_3d)
        clip = out[:, :, past:]
        if activation and dtype == x.dtype:
            torch.ops.aten.silu.out(x, out=clip)
        else:  # SiLU's kernel on CPUs cannot write another dtype
            clip.copy_(F.silu(x) if activation else x)
        out[:, :, :past] = clip[:, :, :1] if before is None else before
        ctx.past, ctx.repeats, ctx.activation = past, before is None, activation
        ctx.save_for_backward(*([x] if activation else []))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        clip, front = grad[:, :, ctx.past :], grad[:, :, : ctx.past]
        into_first = clip[:, :, :1] + front.sum(dim=2, keepdim=True) if ctx.repeats else None
        if ctx.activation:
            (x,) = ctx.saved_tensors
            into_first = into_first if into_first is None else _silu_backward(into_first, x[:, :, :1])
            clip = _silu_backward(clip, x)
        elif ctx.repeats:
            clip = clip.clone()
        if into_first is not None:
            clip[:, :, :1] = into_first
        return clip, None, None if ctx.repeats else front, None, None


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.silu_backward(grad, x)
    return found
