"""Norm, SiLU and causal padding between two convolutions of the autoencoder, as one function over channels-last memory.

The causal convolutions of the autoencoder wait for a normalised input with frames in front of it. Made by one function, it needs no
`cat`, no change of layout and no float32 copy of the activations.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from walt_pl.blocks.norm_silu_pad_ops import forward_op
from walt_pl.blocks.pad_front import pad_front

NormName = Literal["group", "layer"]


@dataclass(frozen=True)
class Modulation:
    """Scale and shift of an adaptive norm at the latent's resolution: the repeated tensor is never stored."""

    scale_shift: Tensor
    """[b 2c t' h' w'], the scale in the first c channels: the norm's output is multiplied by 1 + scale, and shift is added."""
    factors: tuple[int, int, int] = (1, 1, 1)
    """Frames, rows and columns that share one value."""
    skip: int = 0
    """Frames that the repeated tensor has in front of the first one of x."""

    def repeat(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of each position, 2 x [b c t h w]."""
        ft, fh, fw = self.factors
        # In the order of memory, channels last: a norm's output would take another layout from it.
        last = repeat(self.scale_shift, "b c t h w -> b (t ft) (h fh) (w fw) c", ft=ft, fh=fh, fw=fw)
        repeated = rearrange(last, "b t h w c -> b c t h w")
        scale, shift = repeated[:, :, self.skip :].chunk(2, dim=1)
        return scale, shift


def norm_silu_pad(
    x: Tensor,
    *,
    norm: NormName,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    groups: int = 32,
    eps: float = 1e-6,
    conv_bias: Tensor | None = None,
    modulation: Modulation | None = None,
    activation: bool = True,
    past: int = 0,
    before: Tensor | None = None,
) -> Tensor:
    """Normalise, activate and pad in front, from channels-last to channels-last.

    A convolution with padding (0, 1, 1) can follow at once. Statistics are float32. The output has autocast's dtype where autocast is
    on, else that of x. There is no second derivative on CUDA.

    Args:
        x: output of the previous convolution, [b c t h w], best in channels_last_3d memory.
        norm: "group" is GroupNorm of each frame alone (the network is causal), "layer" is LayerNorm over the channels of each position.
        weight: gain [c] of the norm; None for 1.
        bias: offset [c] of the norm; given with `weight` or not at all.
        groups: of "group".
        eps: added to the variance.
        conv_bias: bias [c] of the previous convolution, if that convolution did not add it; None for 0.
        modulation: scale and shift of an adaptive norm, in place of weight and bias.
        activation: apply SiLU.
        past: frames in front of the output.
        before: values of those frames [b c past h w], cached from the output of the chunk before; None repeats the first output frame.

    Returns:
        [b c past+t h w] in channels_last_3d memory.
    """
    assert before is None or before.shape[2] == past, "the cache holds another number of frames than the convolution wants"
    assert (weight is None) == (bias is None) and (weight is None or modulation is None), "weight and bias, or a modulation, or nothing"
    compute = triton_norm_silu_pad if _takes_triton(x) else plain_norm_silu_pad
    return compute(
        x,
        norm=norm,
        weight=weight,
        bias=bias,
        groups=groups,
        eps=eps,
        conv_bias=conv_bias,
        modulation=modulation,
        activation=activation,
        past=past,
        before=before,
    )


def _takes_triton(x: Tensor) -> bool:
    """Return whether the kernels compute this: on CUDA, in the dtypes they know, where Triton compiles.

    Tensors on the meta device take their operators, too: a plan is one of a GPU.
    """
    return x.is_meta or (x.is_cuda and x.dtype in (torch.float32, torch.float16, torch.bfloat16) and triton_compiles())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def triton_compiles() -> bool:
    """Return whether the kernels compile and run on this machine's GPU; warn once if they do not."""
    return _probe()


@functools.cache
def _probe() -> bool:
    try:
        x = torch.ones(1, 32, 1, 2, 2, device="cuda", requires_grad=True)
        with torch.enable_grad(), torch.autocast("cuda", enabled=False):
            y = triton_norm_silu_pad(x, norm="group")
            torch.autograd.grad(y.sum(), x)
        torch.cuda.synchronize()
    except Exception as problem:  # a compiler, driver or GPU that Triton does not know fails in many ways, and PyTorch computes the same
        warnings.warn(f"Triton does not compile the autoencoder's norms here ({problem!r}); PyTorch's slower ones are used", stacklevel=2)
        return False
    return True


def output_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that the following convolution computes in."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):  # the meta device of a plan
        return x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def plain_norm_silu_pad(
    x: Tensor,
    *,
    norm: NormName,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    groups: int = 32,
    eps: float = 1e-6,
    conv_bias: Tensor | None = None,
    modulation: Modulation | None = None,
    activation: bool = True,
    past: int = 0,
    before: Tensor | None = None,
) -> Tensor:
    """Compute `norm_silu_pad` with PyTorch's own operations: for CPUs, and the reference of the kernels."""
    dtype = output_dtype(x)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if conv_bias is not None:
        x = x + conv_bias.to(x.dtype)[:, None, None, None]
    if norm == "layer":
        y = F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, eps).movedim(-1, 1)
    else:
        frames = F.group_norm(rearrange(x, "b c t h w -> (b t) c h w"), groups, weight, bias, eps)
        y = rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
    if modulation is not None:
        scale, shift = modulation.repeat()
        y = torch.addcmul(shift, y, 1 + scale)
    if past:
        return pad_front(y, past, before, activation, dtype)
    y = (F.silu(y) if activation else y).to(dtype)
    return y.contiguous(memory_format=torch.channels_last_3d)


def triton_norm_silu_pad(
    x: Tensor,
    *,
    norm: NormName,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    groups: int = 32,
    eps: float = 1e-6,
    conv_bias: Tensor | None = None,
    modulation: Modulation | None = None,
    activation: bool = True,
    past: int = 0,
    before: Tensor | None = None,
) -> Tensor:
    """Compute `norm_silu_pad` with the Triton kernels: one pass over memory for LayerNorm, two for GroupNorm."""
    scale_shift, repeats = (None, [1, 1, 1, 0]) if modulation is None else (modulation.scale_shift, [*modulation.factors, modulation.skip])
    groups = groups if norm == "group" else 0
    y: Tensor
    y, _ = forward_op(x, weight, bias, conv_bias, scale_shift, before, groups, eps, repeats, activation, past, output_dtype(x))
    return y
