"""`norm_silu_pad` on GPUs as operators of PyTorch: their schema, their fakes and their gradient.

Nothing here imports Triton, so the operators work on the meta device of a plan on every machine. The kernels are imported at the first
launch.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
from einops import rearrange
from torch import Tensor


def _empty(like: Tensor, frames: int, dtype: torch.dtype) -> Tensor:
    b, c, _, h, w = like.shape
    return rearrange(like.new_empty(b, frames, h, w, c, dtype=dtype), "b t h w c -> b c t h w")


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


@torch.library.custom_op("walt::norm_silu_pad", mutates_args=())
def forward_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    scale_shift: Tensor | None,
    before: Tensor | None,
    groups: int,
    eps: float,
    repeats: list[int],
    activation: bool,
    past: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the output [b c past+t h w] and GroupNorm's statistics [f g 2] (empty for LayerNorm: groups = 0).

    Args as `norm_silu_pad` has them; repeats are the modulation's factors and the frames it skips.
    """
    # At the first launch: Triton has no package for every machine, and TRITON_INTERPRET counts when it is imported.
    from walt_pl.blocks.norm_silu_pad_triton import forward

    copies = past > 0 and before is None
    y = _empty(x, past + x.shape[2], dtype)
    scale_shift = None if scale_shift is None else _channels_last(scale_shift)
    statistics = forward(_channels_last(x), weight, bias, conv_bias, scale_shift, groups, eps, repeats, activation, past, copies, y)
    if before is not None:
        y[:, :, :past] = before
    return y, statistics


@forward_op.register_fake
def _(x, weight, bias, conv_bias, scale_shift, before, groups, eps, repeats, activation, past, dtype):
    b, _, t = x.shape[:3]
    return _empty(x, past + t, dtype), x.new_empty((b * t, groups, 2) if groups else (0,), dtype=torch.float32)


@torch.library.custom_op("walt::norm_silu_pad_backward", mutates_args=())
def backward_op(
    g: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    scale_shift: Tensor | None,
    groups: int,
    eps: float,
    repeats: list[int],
    activation: bool,
    past: int,
    copies: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias, conv_bias and scale_shift; empty for those not given."""
    from walt_pl.blocks.norm_silu_pad_triton import backward

    g, x = _channels_last(g), _channels_last(x)
    dx, dscale_shift = _empty(x, x.shape[2], x.dtype), None
    if scale_shift is not None:
        scale_shift = _channels_last(scale_shift)
        dscale_shift = _empty(scale_shift, scale_shift.shape[2], scale_shift.dtype)
    inputs = (g, x, statistics, weight, bias, conv_bias, scale_shift)
    vectors = backward(*inputs, groups, eps, repeats, activation, past, copies, dx, dscale_shift)
    return dx, *vectors, x.new_empty(0) if dscale_shift is None else dscale_shift


@backward_op.register_fake
def _(g, x, statistics, weight, bias, conv_bias, scale_shift, groups, eps, repeats, activation, past, copies):
    vectors = (x.new_empty(0) if given is None else torch.empty_like(given) for given in (weight, bias, conv_bias))
    modulation = x.new_empty(0) if scale_shift is None else _empty(scale_shift, scale_shift.shape[2], scale_shift.dtype)
    return _empty(x, x.shape[2], x.dtype), *vectors, modulation


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, conv_bias, scale_shift, before, *settings, past, _ = inputs
    ctx.save_for_backward(x, output[1], weight, bias, conv_bias, scale_shift)
    ctx.settings = (*settings, past, past > 0 and before is None)
    ctx.before = None if before is None else before.dtype


def _differentiate(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = backward_op(g, *ctx.saved_tensors, *ctx.settings)
    given = (True, *(saved is not None for saved in ctx.saved_tensors[2:]))
    before = None if ctx.before is None else g[:, :, : ctx.settings[-2]].to(ctx.before)
    return *(gradient if there else None for gradient, there in zip(gradients, given, strict=True)), before, *([None] * 6)


def _refuse_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError("norm_silu_pad has no second derivative on CUDA; call plain_norm_silu_pad where one is needed")


forward_op.register_autograd(_differentiate, setup_context=_save)
backward_op.register_autograd(_refuse_second_derivative)
