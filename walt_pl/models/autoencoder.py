"""What stages, samplers and caches need of an autoencoder: the seam for others than `walt_pl.models.vae.VAE`."""

from typing import Protocol

import torch
from torch import Tensor


class LatentDistribution(Protocol):
    """What an autoencoder's encoder gives."""

    mean: Tensor
    """[b c 1+t h w] float32."""


class Autoencoder(Protocol):
    """Pixels [b 3 1+T H W] in -1..1 to latents [b c 1+t h w] and back, images as one-frame videos."""

    @property
    def factors(self) -> tuple[int, int, int]:
        """By how much time, rows and columns shrink: T = t f_t, H = h f_h, W = w f_w."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    def encode(self, x: Tensor, chunk: int | None = None) -> LatentDistribution:
        """Encode clips, `chunk` pixel frames at a time (None: all at once)."""
        ...

    def decode(self, z: Tensor, chunk: int | None = None, tile: int | None = None) -> Tensor:
        """Decode clips, `chunk` latent frames at a time, in tiles with sides of `tile` latent cells (None: all at once)."""
        ...

    def to(self, device: torch.device) -> "Autoencoder":
        """Move it to a device."""
        ...
