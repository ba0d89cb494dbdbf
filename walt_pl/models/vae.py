"""The causal 3D autoencoder: one latent space for images and videos (MAGVIT-v2, arXiv 2310.05737, without its quantiser).

`x [b 3 1+T H W] -> z [b c 1+t h w]`. The first frame is encoded alone, so an image is a one-frame video with the same weights.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from walt_pl.blocks.causal_conv import (
    CausalConv3d,
    CausalConvCache,
    CausalNorm,
    ResBlock,
    SpatialNorm,
    Strides,
    Upsample,
)
from walt_pl.blocks.norm_silu_pad import NormName


@dataclass(frozen=True)
class VAEConfig:
    """Size of the autoencoder. The defaults are the full-size model of the paper: 8 x 8 x 4, about 370 M parameters."""

    width: int = 128
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Width of each level, from full resolution down, in multiples of `width`."""
    strides: tuple[Strides, ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    """(time, rows, columns) between one level and the next."""
    num_res_blocks: tuple[int, ...] = (4, 4, 4, 4)
    """Residual blocks of each level."""
    num_middle_blocks: int = 4
    """Residual blocks at the lowest resolution, in addition to those of that level."""
    latent_channels: int = 8
    """Channels of the latent."""
    norm: NormName = "group"
    """GroupNorm(32) per frame, or LayerNorm over the channels of each position."""
    time_kernel: Literal[1, 3] = 3
    """Frames each convolution sees; 1 for an autoencoder of images, which can initialise a video autoencoder."""

    def __post_init__(self) -> None:
        levels = len(self.channel_multipliers)
        if len(self.strides) != levels - 1 or len(self.num_res_blocks) != levels:
            found = f"{len(self.strides)} and {len(self.num_res_blocks)}"
            raise ValueError(f"vae: {levels} channel_multipliers want {levels - 1} strides and {levels} num_res_blocks, got {found}")
        for width in self.widths:
            if self.norm == "group" and width % 32:
                raise ValueError(f"vae.norm: group wants widths that are multiples of 32, got {width}; use norm: layer")
        if any(s not in (1, 2) for stride in self.strides for s in stride):
            raise ValueError(f"vae.strides: each must be 1 or 2, got {self.strides}")
        if self.time_kernel == 1 and self.factors[0] > 1:
            raise ValueError(f"vae.time_kernel: 1 is for images and wants strides of 1 in time, got {self.strides}; use 3 for videos")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.width * m for m in self.channel_multipliers)

    @property
    def factors(self) -> Strides:
        """Down-sampling factors from pixels to latents: (time, rows, columns)."""
        return _product(self.strides)


def _product(strides: tuple[Strides, ...]) -> Strides:
    t, h, w = 1, 1, 1
    for stride in strides:
        t, h, w = t * stride[0], h * stride[1], w * stride[2]
    return t, h, w


@dataclass
class Posterior:
    """Gaussian over latents: mean and log-variance, float32 [b c 1+t h w] each."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return a sample [b c 1+t h w]: mean plus standard deviation times `noise`."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """Return the KL divergence to N(0, 1) in nats, summed over channels, [b 1+t h w]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(dim=1)


class Encoder(nn.Module):
    """Encoder of pixels [b 3 1+T H W] to the mean and log-variance of the latent, [b 2c 1+t h w]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = CausalConv3d(3, widths[0], time_kernel=config.time_kernel)
        self.layers = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            if level:
                self.layers.append(CausalConv3d(channels, channels, stride=config.strides[level - 1], time_kernel=config.time_kernel))
            for _ in range(config.num_res_blocks[level]):
                self.layers.append(ResBlock(channels, width, config.norm, config.time_kernel))
                channels = width
        for _ in range(config.num_middle_blocks):
            self.layers.append(ResBlock(channels, channels, config.norm, config.time_kernel))
        self.norm_out = CausalNorm(config.norm, channels)
        self.conv_out = CausalConv3d(channels, 2 * config.latent_channels, kernel=1)
        # With a posterior as wide as the prior, noise would dominate the latent until the log-variance is learnt.
        nn.init.constant_(self.conv_out.bias[config.latent_channels :], -6.0)  # type: ignore[index]

    def forward(self, x: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        h = self.conv_in(x, cache)
        for layer in self.layers:
            h = layer(h, cache)
        out: Tensor = self.conv_out(h, norm=self.norm_out)
        return out


class DecoderLevel(nn.Module):
    """Level of the decoder: norm with the latent's modulation, residual blocks, and up-sampling (none at full resolution)."""

    def __init__(self, config: VAEConfig, level: int, in_channels: int) -> None:
        super().__init__()
        self.factors = _product(config.strides[level:])
        width = config.widths[level]
        self.norm = SpatialNorm(in_channels, config.latent_channels, config.norm)
        widths = [in_channels] + [width] * config.num_res_blocks[level]
        self.blocks = nn.ModuleList(ResBlock(a, b, config.norm, config.time_kernel) for a, b in itertools.pairwise(widths))
        self.channels = widths[-1]
        self.upsample = Upsample(self.channels, config.strides[level - 1], config.time_kernel) if level else None

    def forward(self, x: Tensor, z: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        x = self.norm(x, z, self.factors, cache)
        for block in self.blocks:
            x = block(x, cache)
        return x if self.upsample is None else self.upsample(x, cache)


class Decoder(nn.Module):
    """Decoder of latents [b c 1+t h w] to pixels [b 3 1+T H W]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.widths[-1]
        self.conv_in = CausalConv3d(config.latent_channels, channels, time_kernel=config.time_kernel)
        self.middle = nn.ModuleList(ResBlock(channels, channels, config.norm, config.time_kernel) for _ in range(config.num_middle_blocks))
        self.levels = nn.ModuleList()
        for level in reversed(range(len(config.widths))):
            self.levels.append(DecoderLevel(config, level, channels))
            channels = self.levels[-1].channels  # type: ignore[assignment]
        self.norm_out = CausalNorm(config.norm, channels)
        self.conv_out = CausalConv3d(channels, 3, time_kernel=config.time_kernel)

    def forward(self, z: Tensor, cache: CausalConvCache | None = None) -> Tensor:
        # Channels last from the start: 3D convolutions are faster with it on CPUs and tensor cores, and every layer keeps it.
        z = z.contiguous(memory_format=torch.channels_last_3d)
        h = self.conv_in(z, cache)
        for block in self.middle:
            h = block(h, cache)
        for level in self.levels:
            h = level(h, z, cache)
        out: Tensor = self.conv_out(h, cache, self.norm_out)
        return out


class VAE(nn.Module):
    """Causal video autoencoder with a Gaussian latent (docs/METHOD.md, section 2)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last_3d)

    @property
    def factors(self) -> Strides:
        """Down-sampling factors of time, rows and columns."""
        return self.config.factors

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    def encode(self, x: Tensor, chunk: int | None = None) -> Posterior:
        """Encode clips.

        Args:
            x: pixels [b 3 1+T H W] in -1..1. T is a multiple of the temporal factor, H and W are multiples of the spatial factors.
            chunk: pixel frames encoded at once, a multiple of the temporal factor; None encodes the whole clip. The result is equal up
                to rounding, and with chunks memory does not grow with the clip's length.

        Returns:
            Distribution of the latents [b c 1+t h w].

        Raises:
            ValueError: the factors do not divide the shape, or the temporal factor does not divide `chunk`.
        """
        self._check_pixels(x)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if chunk is None:
            out = self.encoder(x)
        else:
            cache = CausalConvCache()
            out = torch.cat([self._advance(self.encoder, part, cache) for part in _chunks(x, chunk, self.config.factors[0])], dim=2)
        mean, logvar = out.float().chunk(2, dim=1)  # 2 x [b c 1+t h w]
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor, chunk: int | None = None, tile: int | None = None) -> Tensor:
        """Decode latents.

        Args:
            z: raw latents [b c 1+t h w], as `encode` returns them (not normalised).
            chunk: latent frames decoded at once; None decodes all. The result is equal up to rounding, and with chunks memory does not
                grow with the clip's length.
            tile: side in latent cells of overlapping tiles, blended over a quarter of their side; for frames too large for memory.
                None decodes whole frames.

        Returns:
            Pixels [b 3 1+T H W], about -1..1, float32.

        Raises:
            ValueError: `tile` is below 4, or `chunk` below 1.
        """
        if tile is not None:
            return _blend_tiles(z, tile, self.config.factors, lambda part: self.decode(part, chunk))
        return torch.cat(list(self.decode_chunks(z, chunk)), dim=2)

    def decode_chunks(self, z: Tensor, chunk: int | None = None) -> Iterator[Tensor]:
        """Yield the pixels of `decode`, one chunk of frames at a time, float32 [b 3 t H W]."""
        if chunk is None:
            yield self.decoder(z).float()
            return
        cache = CausalConvCache()
        for part in _chunks(z, chunk, 1):
            yield self._advance(self.decoder, part, cache).float()

    @staticmethod
    def _advance(network: nn.Module, part: Tensor, cache: CausalConvCache) -> Tensor:
        out: Tensor = network(part, cache)
        cache.first = False
        return out

    def _check_pixels(self, x: Tensor) -> None:
        ft, fh, fw = self.config.factors
        t, h, w = x.shape[2:]
        if (t - 1) % ft or h % fh or w % fw:
            raise ValueError(
                f"vae.encode: got {t} frames of {h} x {w} pixels, want 1 + a multiple of {ft} frames and sides multiple of {fh} x {fw}"
            )


def _chunks(x: Tensor, size: int, factor: int) -> Iterator[Tensor]:
    """Split [b c 1+T h w] in time: 1 + `size` frames in the first chunk, `size` in the others.

    Raises:
        ValueError: `size` is not a multiple of `factor`.
    """
    if size < factor or size % factor:
        raise ValueError(f"chunk must be a multiple of the temporal factor {factor}, got {size}")
    starts = [0, *range(1 + size, x.shape[2], size)]
    for start, stop in zip(starts, [*starts[1:], x.shape[2]], strict=True):
        yield x[:, :, start:stop]


def _blend_tiles(z: Tensor, tile: int, factors: Strides, decode) -> Tensor:  # type: ignore[no-untyped-def]
    """Decode overlapping tiles of [b c t h w] and blend them with ramps, divided by the sum of the ramps.

    Raises:
        ValueError: `tile` is below 4.
    """
    if tile < 4:
        raise ValueError(f"tile must be at least 4 latent cells, got {tile}")
    step = tile - tile // 4
    out: Tensor | None = None
    weight: Tensor | None = None
    for top in _starts(z.shape[3], tile, step):
        for left in _starts(z.shape[4], tile, step):
            part = decode(z[:, :, :, top : top + tile, left : left + tile])
            if out is None or weight is None:
                out = part.new_zeros(*part.shape[:3], z.shape[3] * factors[1], z.shape[4] * factors[2])
                weight = out.new_zeros(out.shape[3:])
            ramp = _ramp(part.shape[3], part)[:, None] * _ramp(part.shape[4], part)[None]
            rows = slice(top * factors[1], top * factors[1] + part.shape[3])
            columns = slice(left * factors[2], left * factors[2] + part.shape[4])
            out[..., rows, columns] += part * ramp
            weight[rows, columns] += ramp
    assert out is not None and weight is not None
    return out / weight


def _starts(length: int, tile: int, step: int) -> list[int]:
    return [0] if length <= tile else [*range(0, length - tile, step), length - tile]


def _ramp(length: int, like: Tensor) -> Tensor:
    position = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(position, length - position).clamp(max=length / 4)
