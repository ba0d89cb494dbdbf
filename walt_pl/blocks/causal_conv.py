"""Convolutions and norms that are causal in time (MAGVIT-v2, arXiv 2310.05737, section 3.2).

Every layer takes `b c t h w`. For a long video in chunks it also takes a `CausalConvCache`, which holds the frames that the
next chunk needs of this one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from walt_pl.blocks.depth_to_space import depth_to_space
from walt_pl.blocks.kept_weights import KeptWeights
from walt_pl.blocks.norm_silu_pad import Modulation, NormName, norm_silu_pad, output_dtype
from walt_pl.blocks.pad_front import pad_front

Strides = tuple[int, int, int]


@dataclass
class CausalConvCache:
    """State of a causal network between two chunks of a video."""

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    """Last input frames of each convolution, [b c k h w]."""
    first: bool = True
    """True if the present chunk is the first: only the first drops frames after up-sampling."""


class CausalConv3d(nn.Conv3d):
    """3D convolution with all of its temporal padding in front.

    The padding repeats the first frame: zeros would show the network where the clip begins. For a single frame, every temporal tap
    therefore sees the same pixel. The layer then equals a 2D convolution with the taps summed, and computes that.

    Args:
        in_channels: channels of the input [b c t h w].
        out_channels: channels of the output.
        kernel: side of the kernel, odd.
        stride: (time, rows, columns); at stride 2, 17 frames become 9 and one frame stays one.
        time_kernel: upper limit of the kernel's frames; 1 computes each frame alone.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: Strides = (1, 1, 1), time_kernel: int = 3) -> None:
        side, frames = kernel // 2, min(kernel, time_kernel)
        super().__init__(in_channels, out_channels, (frames, kernel, kernel), stride=stride, padding=(0, side, side))
        self.past = frames - 1
        self._kept = KeptWeights()

    def forward(self, x: Tensor, cache: CausalConvCache | None = None, norm: "CausalNorm | None" = None) -> Tensor:
        """Convolve [b c t h w] to [b d t h w].

        Args:
            x: input.
            cache: state of the stream; None for a whole clip.
            norm: norm that comes first, with SiLU; None for none.
        """
        return self.convolve(self.pad(x, cache, norm))

    def pad(self, x: Tensor, cache: CausalConvCache | None, norm: "CausalNorm | None", conv_bias: Tensor | None = None) -> Tensor:
        """Normalise and activate the input, and put the frames in front that the convolution looks back on."""
        past = self.past if cache is not None or x.shape[2] > 1 else 0
        before = None if cache is None else cache.inputs.get(self)
        if norm is not None:
            x = norm(x, activation=True, past=past, before=before, conv_bias=conv_bias)
        elif past:
            x = pad_front(x, past, before)
        if cache is not None and self.past:
            # The next output starts `stride` frames after the last one, so it needs kernel - stride of these inputs again.
            cache.inputs[self] = x[:, :, -(self.past + 1 - self.stride[0]) :].clone()
        return x

    def convolve(self, x: Tensor, add_bias: bool = True) -> Tensor:
        """Convolve an input that has its frames in front; a single frame has none."""
        bias = self.bias if add_bias else None
        if x.shape[2] > 1:
            return F.conv3d(x, self._weight(x, lambda weight: weight, "clip"), bias, self.stride, self.padding)
        # Not indices: their gradient is a tensor of zeros in another layout.
        y = F.conv2d(x.squeeze(2), self._weight(x, sum_taps, "frame"), bias, self.stride[1:], self.padding[1:])
        return y.unsqueeze(2)

    def _weight(self, x: Tensor, make: Callable[[Tensor], Tensor], name: str) -> Tensor:
        """Return `make(weight)`; of a frozen weight it is kept, in the dtype that the convolution computes in."""
        if self.weight.requires_grad:  # autocast casts it, once for all passes of a step
            self._kept.clear()  # the optimiser's step that follows may not move the weight's version
            return make(self.weight)
        dtype = output_dtype(x)
        return self._kept.get(self.weight, (name, dtype), lambda weight: make(weight).to(dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> "CausalConv3d":
        self._kept.clear()  # or the old weights' memory would stay in use on another device
        super()._apply(fn, recurse)
        return self


def sum_taps(weight: Tensor) -> Tensor:
    """Return the kernel [d c h w] that a single frame meets, the sum over the frames of [d c k h w]."""
    # In the order of memory, channels last: 6 times faster on CPUs, and so is the convolution that reads the sum.
    return weight.permute(0, 2, 3, 4, 1).sum(dim=1).permute(0, 3, 1, 2)


class CausalNorm(nn.Module):
    """Norm that sees no later frame: GroupNorm(32) of each frame alone, or LayerNorm over the channels of each position.

    With GroupNorm's statistics over time, later frames would change the first one. LayerNorm is cheaper on a CPU.
    """

    def __init__(self, name: NormName, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.name: NormName = name
        self.norm: nn.GroupNorm | nn.LayerNorm
        if name == "group":
            self.norm = nn.GroupNorm(32, channels, eps=1e-6, affine=affine)
        else:
            self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=affine)

    def forward(
        self,
        x: Tensor,
        *,
        activation: bool = False,
        past: int = 0,
        before: Tensor | None = None,
        conv_bias: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """Normalise [b c t h w]; the options are those of `norm_silu_pad`."""
        return norm_silu_pad(
            x,
            norm=self.name,
            weight=self.norm.weight,
            bias=self.norm.bias,
            eps=self.norm.eps,
            conv_bias=conv_bias,
            modulation=modulation,
            activation=activation,
            past=past,
            before=before,
        )


def defers_bias(x: Tensor) -> bool:
    """Return if the next norm should add a convolution's bias. On CUDA that saves a pass; oneDNN's convolutions add it for nothing."""
    return x.is_cuda


class ResBlock(nn.Module):
    """Residual block: norm, swish, conv3, norm, swish, conv3, plus the input.

    Where the widths differ, the input passes through a 1x1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormName, time_kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = CausalNorm(norm, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, time_kernel=time_kernel)
        self.norm2 = CausalNorm(norm, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, time_kernel=time_kernel)
        self.shortcut = CausalConv3d(in_channels, out_channels, kernel=1) if in_channels != out_channels else None

    def forward(self, x: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        defer = defers_bias(x)
        h = self.conv1.convolve(self.conv1.pad(x, cache, self.norm1), add_bias=not defer)
        h = self.conv2.convolve(self.conv2.pad(h, cache, self.norm2, self.conv1.bias if defer else None))
        return h.add_(x if self.shortcut is None else self.shortcut(x))


class Upsample(nn.Module):
    """Up-sampling by a convolution and depth-to-space, at constant width.

    It drops the first `s - 1` frames, where s is the factor in time: 1 + t frames become 1 + s t.
    """

    def __init__(self, channels: int, factors: Strides, time_kernel: int = 3) -> None:
        super().__init__()
        self.factors = factors
        self.conv = CausalConv3d(channels, channels * factors[0] * factors[1] * factors[2], time_kernel=time_kernel)

    def forward(self, x: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        return depth_to_space(self.conv(x, cache), self.factors, drop=cache is None or cache.first)


class SpatialNorm(nn.Module):
    """Norm with scale and shift from the latent of the same position (MAGVIT-v2's adaptive norm, made causal).

    Latent 0 modulates frame 0, and latent j the frames s(j-1)+1 .. sj. The layer therefore repeats z and drops the first s - 1
    frames. Interpolating z would use future frames.
    """

    def __init__(self, channels: int, latent_channels: int, norm: NormName) -> None:
        super().__init__()
        self.norm = CausalNorm(norm, channels, affine=False)
        self.modulation = nn.Conv3d(latent_channels, 2 * channels, kernel_size=1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, z: Tensor, factors: Strides, cache: CausalConvCache | None = None) -> Tensor:
        skip = factors[0] - 1 if cache is None or cache.first else 0
        normed: Tensor = self.norm(x, modulation=Modulation(self.modulation(z), factors, skip))
        return normed
