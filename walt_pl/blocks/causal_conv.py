"""Convolutions and norms that are causal in time (MAGVIT-v2, arXiv 2310.05737, section 3.2).

Every layer takes `b c t h w`. For a long video in chunks it also takes a `CausalConvCache`, which holds the frames that the
next chunk needs of this one.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Strides = tuple[int, int, int]
NormName = Literal["group", "layer"]


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

    def forward(self, x: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        if x.shape[2] == 1 and cache is None:
            return self._one_frame(x)
        if self.past:
            x = torch.cat([self._before(x, cache), x], dim=2)
            if cache is not None:
                # The next output starts `stride` frames after the last one, so it needs kernel - stride of these inputs again.
                cache.inputs[self] = x[:, :, -(self.past + 1 - self.stride[0]) :].clone()
        return super().forward(x)

    def _before(self, x: Tensor, cache: CausalConvCache | None) -> Tensor:
        if cache is not None and self in cache.inputs:
            return cache.inputs[self]
        return x[:, :, :1].expand(-1, -1, self.past, -1, -1)

    def _one_frame(self, x: Tensor) -> Tensor:
        y = F.conv2d(x[:, :, 0], self.weight.sum(dim=2), self.bias, self.stride[1:], self.padding[1:])
        return y[:, :, None]


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each position. It is causal, and cheaper than GroupNorm on a CPU."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class FrameGroupNorm(nn.Module):
    """GroupNorm(32) of each frame alone. With statistics over time, later frames would change the first one."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=x.shape[0])


def make_norm(name: NormName, channels: int, affine: bool = True) -> nn.Module:
    """Return the norm that a config names, over [b c t h w]."""
    return FrameGroupNorm(channels, affine) if name == "group" else ChannelLayerNorm(channels, affine)


class ResBlock(nn.Module):
    """Residual block: norm, swish, conv3, norm, swish, conv3, plus the input.

    Where the widths differ, the input passes through a 1x1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormName, time_kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, time_kernel=time_kernel)
        self.norm2 = make_norm(norm, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, time_kernel=time_kernel)
        self.shortcut = CausalConv3d(in_channels, out_channels, kernel=1) if in_channels != out_channels else None

    def forward(self, x: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), cache)
        h = self.conv2(F.silu(self.norm2(h)), cache)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Upsample(nn.Module):
    """Up-sampling by a convolution and depth-to-space, at constant width.

    It drops the first `s - 1` frames, where s is the factor in time: 1 + t frames become 1 + s t.
    """

    def __init__(self, channels: int, factors: Strides, time_kernel: int = 3) -> None:
        super().__init__()
        self.factors = factors
        self.conv = CausalConv3d(channels, channels * factors[0] * factors[1] * factors[2], time_kernel=time_kernel)

    def forward(self, x: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        st, sh, sw = self.factors
        x = rearrange(self.conv(x, cache), "b (c st sh sw) t h w -> b c (t st) (h sh) (w sw)", st=st, sh=sh, sw=sw)
        return x[:, :, st - 1 :] if cache is None or cache.first else x


class SpatialNorm(nn.Module):
    """Norm with scale and shift from the latent of the same position (MAGVIT-v2's adaptive norm, made causal).

    Latent 0 modulates frame 0, and latent j the frames s(j-1)+1 .. sj. The layer therefore repeats z and drops the first s - 1
    frames. Interpolating z would use future frames.
    """

    def __init__(self, channels: int, latent_channels: int, norm: NormName) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels, affine=False)
        self.modulation = nn.Conv3d(latent_channels, 2 * channels, kernel_size=1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, z: Tensor, factors: Strides, cache: CausalConvCache | None = None) -> Tensor:
        modulation = self.modulation(z)
        for dim, factor in zip((2, 3, 4), factors, strict=True):
            modulation = modulation.repeat_interleave(factor, dim=dim) if factor > 1 else modulation
        if cache is None or cache.first:
            modulation = modulation[:, :, factors[0] - 1 :]
        scale, shift = modulation.chunk(2, dim=1)  # 2 x [b c t h w]
        return torch.addcmul(shift, self.norm(x), 1 + scale)
