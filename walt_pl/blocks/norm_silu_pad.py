"""Norm, SiLU and causal padding between two convolutions of the autoencoder, as one function over channels-last memory.

The causal convolutions of the autoencoder wait for a normalised input with frames in front of it. Made by one function, it needs no
`cat`, no change of layout and no float32 copy of the activations.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from walt_pl.blocks.norm_silu_pad_ops import forward_op
from walt_pl.blocks.pad_front import pad_front

NormName = Literal["group", "layer"]

TOLERANCE = 2e-2
"""Largest relative error in `find_problem`; bfloat16 has 4e-3."""


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
        """Return 1 + scale and shift of each position, 2 x [b c t h w]."""
        ft, fh, fw = self.factors
        one = torch.ones_like(self.scale_shift[0, :, 0, 0, 0])
        one[len(one) // 2 :] = 0
        # In the order of memory, channels last: a norm's output would take another layout from it.
        last = rearrange(self.scale_shift, "b c t h w -> b t h w c") + one
        # One axis at a time, frames first: the gradient's sum over three axes at once took three times as long on a CPU.
        last = repeat(last, "b t h w c -> b (t ft) h w c", ft=ft)[:, self.skip :]
        last = repeat(last, "b t h w c -> b t (h fh) w c", fh=fh)
        last = repeat(last, "b t h w c -> b t h (w fw) c", fw=fw)
        gain, shift = rearrange(last, "b t h w c -> b c t h w").chunk(2, dim=1)
        return gain, shift


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
    if x.is_meta:
        return True
    return x.is_cuda and x.dtype in (torch.float32, torch.float16, torch.bfloat16) and kernels_are_right(x.get_device(), x.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernels_are_right(device: int, dtype: torch.dtype) -> bool:
    """Return whether the kernels compile on a GPU and give right values; warn once if they do not."""
    problem = find_problem(torch.device("cuda", device), dtype)
    if problem:
        _warn_once(problem)
    return not problem


@functools.cache
def _warn_once(problem: str) -> None:
    warnings.warn(f"Triton's kernels of the autoencoder's norms do not run here ({problem}); PyTorch's slower ones do", stacklevel=2)


@functools.cache
def find_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Run the kernels on a small clip and compare output and gradient with PyTorch's operations. Return the problem in one line, or "".

    A validation may be the first to ask, in inference mode. The random state of a training is not advanced.
    """
    generator = torch.Generator(device).manual_seed(0)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            x, do = (torch.randn(1, 64, t, 4, 6, generator=generator, device=device).to(dtype) for t in (3, 5))
            conv_bias, weight, bias = torch.randn(3, 64, generator=generator, device=device).unbind()
            scale_shift = torch.randn(1, 128, 2, 2, 3, generator=generator, device=device).to(dtype)
            cases: list[dict[str, Any]] = [
                {"norm": "group", "weight": weight, "bias": bias},
                {"norm": "layer", "modulation": Modulation(scale_shift, (2, 2, 2), skip=1)},
            ]
            wrong = []
            for case in cases:
                found: list[Tensor] = []
                wanted: list[Tensor] = []
                for compute, given, results in ((triton_norm_silu_pad, x, found), (plain_norm_silu_pad, x.float(), wanted)):
                    given = given.detach().requires_grad_()
                    y = compute(given, **case, conv_bias=conv_bias, past=2)
                    results += [y.detach(), torch.autograd.grad(y, given, do.to(y.dtype))[0]]
                errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
                wrong += [f"{case['norm']} {error:.1e}" for error in errors if not error < TOLERANCE]
    except torch.OutOfMemoryError:  # says nothing about the kernels, and must not be kept as their fault
        raise
    except Exception as problem:  # a compiler, driver or GPU that Triton does not know fails in many ways, and PyTorch computes the same
        return f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"
    return f"relative errors of {', '.join(wrong)}, wanted below {TOLERANCE}" if wrong else ""


def output_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that the following convolution computes in."""
    kind = x.device.type
    if x.is_meta:  # a plan has no autocast; torch 2.11 cannot trace `torch.amp.is_autocast_available`
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
        gain, shift = modulation.repeat()
        y = torch.addcmul(shift, y, gain)
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
