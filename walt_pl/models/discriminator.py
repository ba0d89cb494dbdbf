"""The discriminator of the autoencoder's adversarial term: a 3D StyleGAN discriminator (MAGVIT, arXiv 2212.05199, appendix A)."""

import itertools
import math
from dataclasses import dataclass

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

    One frame stays one frame.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate")
        for dim in (2, 3, 4):
            size = x.shape[dim] - 2
            a, b, c = (x.narrow(dim, start, size) for start in range(3))
            x = ((a + c) / 4 + b / 2).narrow(dim, 0, size)
            index: list[slice] = [slice(None)] * 5
            index[dim] = slice(None, None, 2)
            x = x[tuple(index)]
        return x


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
        return F.conv2d(x[:, :, 0], self.weight[:, :, 1], self.bias, padding=1)[:, :, None]


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

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [b] of clips [b 3 t h w] in -1..1, in the dtype of the weights.

        Raises:
            ValueError: the clips have another size than the config's.
        """
        if tuple(x.shape[3:]) != self.config.size:
            raise ValueError(f"discriminator.size is {self.config.size}, got clips of {tuple(x.shape[3:])}; set it to the size trained on")
        h = F.leaky_relu(self.conv_in(x), 0.2)
        for block in self.blocks:
            h = block(h)
        h = F.leaky_relu(self.conv_out(h), 0.2).mean(dim=2)
        h = F.leaky_relu(self.hidden(h.flatten(1)), 0.2)
        # An elementwise product: autocast would compute a matrix product in bfloat16.
        return (h * self.logit.weight).sum(dim=1) + self.logit.bias
