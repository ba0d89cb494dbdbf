"""Gather the bias of every pair of a window's tokens from a table of offsets, with a gradient whose bits repeat.

The gradient of `table[:, index]` adds up many pairs into each entry. On CUDA that sum may become atomic additions, whose order changes from
run to run; torch.compile generates them for an index with a gradient. Here it is a sum along diagonals, axis by axis: entry (dt, dh, dw)
adds the pairs whose places differ by dt frames, dh rows and dw columns. Only copies and sums over one axis remain, in a fixed order.

Both directions are custom operators, so torch.compile takes them as they are.
"""

import torch
from einops import rearrange
from torch import Tensor


@torch.library.custom_op("walt::gather_bias", mutates_args=())
def gather_bias(table: Tensor, index: Tensor, window: list[int]) -> Tensor:
    """Return the bias of every pair of tokens.

    Args:
        table: entries of each head [heads (2t-1)(2h-1)(2w-1)], row-major over (dt, dh, dw).
        index: entry of each pair, int64 [n n].
        window: (t, h, w), of which the gradient needs the sides.

    Returns:
        Bias [heads n n], in the dtype of the table.
    """
    return table[:, index]


@torch.library.custom_op("walt::sum_offsets", mutates_args=())
def sum_offsets(pairs: Tensor, window: list[int]) -> Tensor:
    """Sum over all pairs of tokens with the same offset: the transpose of `gather_bias`.

    Args:
        pairs: a value for each pair of tokens [heads n n]; tokens are row-major (t, h, w).
        window: (t, h, w).

    Returns:
        Float32 sums [heads (2t-1)(2h-1)(2w-1)].
    """
    t, h, w = window
    x = rearrange(pairs.float(), "a (t h w) (t2 h2 w2) -> a t t2 h h2 w w2", t=t, h=h, w=w, t2=t, h2=h, w2=w)
    x = _sum_diagonals(x)  # a t t2 h h2 dw
    x = _sum_diagonals(rearrange(x, "a t t2 h h2 dw -> a dw t t2 h h2"))  # a dw t t2 dh
    x = _sum_diagonals(rearrange(x, "a dw t t2 dh -> a dh dw t t2"))  # a dh dw dt
    # The diagonals count key minus query; the table counts query minus key.
    return rearrange(x, "a dh dw dt -> a (dt dh dw)").flip(-1)


def _sum_diagonals(x: Tensor) -> Tensor:
    """Sum a square matrix along its diagonals, from the lower left corner to the upper right one.

    Element (i, j) is written to place i (2s-2) + (s-1) + j of a row of zeros. In rows of 2s-1 that place is column j - i + s-1.

    Args:
        x: matrices [... s s].

    Returns:
        Sums [... 2s-1], entry k over j - i = k - s + 1.
    """
    s = x.shape[-1]
    if s == 1:
        return x[..., 0]
    skewed = x.new_zeros(*x.shape[:-2], s * (2 * s - 1))
    skewed[..., s - 1 : -1].unflatten(-1, (s, 2 * s - 2))[..., :s] = x
    return skewed.unflatten(-1, (s, 2 * s - 1)).sum(-2)


@gather_bias.register_fake
def _(table: Tensor, index: Tensor, window: list[int]) -> Tensor:
    return table.new_empty(table.shape[0], *index.shape)


@sum_offsets.register_fake
def _(pairs: Tensor, window: list[int]) -> Tensor:
    t, h, w = window
    return pairs.new_empty(pairs.shape[0], (2 * t - 1) * (2 * h - 1) * (2 * w - 1), dtype=torch.float32)


def _keep_window(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, list[int]], output: Tensor) -> None:
    ctx.window = inputs[2]  # type: ignore[attr-defined]
    ctx.dtype = inputs[0].dtype  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, pairs: Tensor) -> tuple[Tensor, None, None]:
    return sum_offsets(pairs, ctx.window).to(ctx.dtype), None, None  # type: ignore[attr-defined]


gather_bias.register_autograd(_backward, setup_context=_keep_window)
