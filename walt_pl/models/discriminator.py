"""The discriminator of the autoencoder's adversarial term: a 3D StyleGAN discriminator (MAGVIT, arXiv 2212.05199, appendix A)."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Size of the discriminator. The defaults are the full-size one for clips of 128 x 128 pixels, about 61 M parameters."""

    width: int = 128
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    """Width after each halving, in multiples of `width`."""
    size: tuple[int, int] = (128, 128)
    """Rows and columns of its input clips."""

    def __post_init__(self) -> None:
        scale = 2 ** len(self.channel_multipliers)
        if self.size[0] % scale or self.size[1] % scale:
            raise ValueError(
                f"discriminator.size must be multiples of {scale} for {len(self.channel_multipliers)} halvings, got {self.size}"
            )


class BlurPool(nn.Module):
    """Low-pass filter [1, 2, 1] along each axis, then every second frame, row and column (Zhang, arXiv 1904.11486).

    One depthwise convolution computes both, in channels-last memory. One frame stays one frame, and takes a 2D convolution.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        # Not in checkpoints: it is a constant.
        self.register_buffer("kernel", torch.einsum("i,j,k->ijk", line, line, line)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter [b c t h w]; each size n becomes (n + 1) // 2."""
        kernel = self.kernel.to(x.dtype)
        if x.shape[2] == 1:
            return _Blur.apply(x.squeeze(2), kernel.sum(dim=2)).unsqueeze(2)
        return _Blur.apply(x, kernel)


class _Blur(torch.autograd.Function):
    """Repeat the edges, then convolve each channel with stride 2.

    The derivative is written out. Autograd's own of `pad` with mode "replicate" adds in no fixed order on CUDA, and its own of slices
    and `cat` fills whole tensors in another layout with zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.size = x.shape[2:]
        ctx.save_for_backward(kernel)
        shape = [*x.shape[:2], *(2 * ((n + 1) // 2) + 1 for n in ctx.size)]
        padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_channels_last(x))
        _interior(padded, ctx.size).copy_(x)
        for dim, n in enumerate(ctx.size, 2):
            padded.select(dim, 0).copy_(padded.select(dim, 1))
            if n % 2:
                padded.select(dim, -1).copy_(padded.select(dim, -2))
        convolve = F.conv2d if x.dim() == 4 else F.conv3d
        return convolve(padded, kernel.expand(x.shape[1], *kernel.shape[1:]), stride=2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _BlurTransposed.apply(g, *ctx.saved_tensors, ctx.size), None


class _BlurTransposed(torch.autograd.Function):
    """Multiply by the transposed matrix of `_Blur`. The blur is linear, so its second derivative is `_Blur` again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, kernel: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(kernel)
        g = g.contiguous(memory_format=_channels_last(g))
        convolve = F.conv_transpose2d if g.dim() == 4 else F.conv_transpose3d
        padded = convolve(g, kernel.expand(g.shape[1], *kernel.shape[1:]), stride=2, groups=g.shape[1])
        for dim, n in enumerate(size, 2):
            padded.select(dim, 1).add_(padded.select(dim, 0))
            if n % 2:
                padded.select(dim, -2).add_(padded.select(dim, -1))
        return _interior(padded, size)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _Blur.apply(g, *ctx.saved_tensors), None, None


def _interior(padded: Tensor, size: torch.Size) -> Tensor:
    for dim, n in enumerate(size, 2):
        padded = padded.narrow(dim, 1, n)
    return padded


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


class Conv3x3x3(nn.Conv3d):
    """3x3x3 convolution with zero padding of one on all sides.

    The padding frames of a single frame are zeros, so only the middle slice of the kernel sees pixels. The layer then equals a 2D
    convolution and computes that, for two reasons. It is cheaper. On CPUs with AMX, torch 2.14's bfloat16 convolution of one frame of
    3 channels returns uninitialised memory.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [b c t h w] to [b d t h w]."""
        if x.shape[2] > 1:
            return super().forward(x)
        # Not indices: their gradient is a tensor of zeros in another layout.
        return F.conv2d(x.squeeze(2), self.weight[:, :, 1], self.bias, padding=1).unsqueeze(2)


class DiscriminatorBlock(nn.Module):
    """Residual block: two convolutions with a halving between them; the residual sum is divided by sqrt 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3x3(in_channels, in_channels)
        self.conv2 = Conv3x3x3(in_channels, out_channels)
        self.shortcut = nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)
        self.pool = BlurPool()

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), 0.2)
        h = F.leaky_relu(self.conv2(self.pool(h)), 0.2)
        return (h + self.shortcut(self.pool(x))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Discriminator of clips, of one frame or more: one logit for each clip, positive for real.

    Kernels start xavier-uniform and biases at zero, as in MAGVIT's code. Torch's default is smaller, and with it the differences
    between clips vanish over the layers. The last linear layer is float32 (our choice). At the start of training, real clips and
    reconstructions differ in the logit by less than one bfloat16 rounding.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width, *(config.width * m for m in config.channel_multipliers)]
        self.conv_in = Conv3x3x3(3, widths[0])
        self.blocks = nn.ModuleList(DiscriminatorBlock(a, b) for a, b in itertools.pairwise(widths))
        self.conv_out = Conv3x3x3(widths[-1], widths[-1])
        scale = 2 ** len(config.channel_multipliers)
        self.hidden = nn.Linear(widths[-1] * (config.size[0] // scale) * (config.size[1] // scale), widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # After the draws, whose order is that of memory.
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [b] of clips [b 3 t h w] in -1..1, in the dtype of the weights.

        Raises:
            ValueError: the clips have another size than the config's.
        """
        if tuple(x.shape[3:]) != self.config.size:
            raise ValueError(f"discriminator.size is {self.config.size}, got clips of {tuple(x.shape[3:])}; set it to the size trained on")
        # Channels last from the start, as in the autoencoder; every layer keeps it.
        h = F.leaky_relu(self.conv_in(x.contiguous(memory_format=torch.channels_last_3d)), 0.2)
        for block in self.blocks:
            h = block(h)
        h = F.leaky_relu(self.conv_out(h), 0.2).mean(dim=2)
        h = F.leaky_relu(self.hidden(h.flatten(1)), 0.2)
        # An elementwise product: autocast would compute a matrix product in bfloat16.
        return (h * self.logit.weight).sum(dim=1) + self.logit.bias
