"""Channels to frames, rows and columns: the second half of an up-sampling by a convolution."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

Factors = tuple[int, int, int]


def depth_to_space(x: Tensor, factors: Factors, drop: bool) -> Tensor:
    """Spread channels over frames, rows and columns, in one pass over memory.

    Args:
        x: [b (c st sh sw) t h w].
        factors: st, sh and sw.
        drop: leave out the first st - 1 frames.

    Returns:
        [b c (t st) (h sh) (w sw)], or st - 1 frames less, in channels_last_3d memory.
    """
    out: Tensor = _DepthToSpace.apply(x, factors, drop)
    return out


def _pieces(x: Tensor, out: Tensor, factors: Factors, lost: int) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of views of x and out that hold the same values: the first frame, which loses some of its frames, and the others."""
    if not lost:
        return [(_inner(x, factors), _outer(out, factors))]
    first = _inner(x[:, :, :1], factors)[:, :, lost:], _outer(out[:, :, :1], (1, *factors[1:]))
    return [first, (_inner(x[:, :, 1:], factors), _outer(out[:, :, 1:], factors))]


def _inner(x: Tensor, factors: Factors) -> Tensor:
    st, sh, sw = factors
    return rearrange(x, "b (c st sh sw) t h w -> b t st h sh w sw c", st=st, sh=sh, sw=sw)


def _outer(x: Tensor, factors: Factors) -> Tensor:
    st, sh, sw = factors
    return rearrange(x, "b c (t st) (h sh) (w sw) -> b t st h sh w sw c", st=st, sh=sh, sw=sw)


class _DepthToSpace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Factors, drop: bool) -> Tensor:
        st, sh, sw = factors
        b, c, t, h, w = x.shape
        lost = st - 1 if drop else 0
        shape = (b, c // (st * sh * sw), t * st - lost, h * sh, w * sw)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        ctx.factors, ctx.lost, ctx.shape = factors, lost, x.shape
        for inner, outer in _pieces(x, out, factors, lost):
            outer.copy_(inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last_3d)
        if ctx.lost:
            out[:, :, 0] = 0
        for inner, outer in _pieces(out, grad, ctx.factors, ctx.lost):
            inner.copy_(outer)
        return out, None, None
