"""The window-attention kernel of GPUs as an operation without arithmetic, for counting bytes and operations on the meta device.

The kernel keeps q, k, v, the output, the log-sum-exp and the bias. Its backward pass recomputes the scores. It adds up the gradient of the
bias in a few float32 matrices for each head, one for each group of windows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

GROUPS = 4
"""Most groups of windows. The kernel forms as many as fill a GPU: 1 for 160 windows of 256 tokens and 16 heads, 3 for 128 of 320."""


@torch.library.custom_op("walt_plan::window_attention", mutates_args=())
def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return output [b heads n e] and float32 log-sum-exp [b heads n] of windows [b heads n e] with a bias [heads n n]."""
    raise NotImplementedError("this operation exists on the meta device alone")


@window_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("walt_plan::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and bias, and what the kernels use in between: partial sums and row sums."""
    raise NotImplementedError("this operation exists on the meta device alone")


@window_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    partial = bias.new_empty((min(GROUPS, q.shape[0]), *bias.shape), dtype=torch.float32)
    return _like(q), _like(q), _like(q), torch.empty_like(bias), partial, torch.empty_like(lse)


def _like(q: Tensor) -> Tensor:
    """Return an empty [b heads n e] that is laid out as [b n heads e]: the kernel's heads are merged without a copy."""
    b, heads, n, e = q.shape
    return q.new_empty(b, n, heads, e).transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return window_attention_backward(grad, *ctx.saved_tensors)[:4]


window_attention.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.walt_plan.window_attention)
def _forward_flops(q: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 4 * q[0] * q[1] * q[2] * q[2] * q[3]


@register_flop_formula(torch.ops.walt_plan.window_attention_backward)
def _backward_flops(grad: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Return the operations as PyTorch counts those of its fused kernels: four products, and the scores once more."""
    return 10 * grad[0] * grad[1] * grad[2] * grad[2] * grad[3]
