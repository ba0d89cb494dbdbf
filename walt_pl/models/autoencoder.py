"""Interface of an autoencoder, as stages, samplers and caches use it. Others than `walt_pl.models.vae.VAE` can implement it."""

from typing import Protocol

import torch
from torch import Tensor


class LatentDistribution(Protocol):
    """Distribution of latents that an encoder returns."""

    mean: Tensor
    """Mean of the latents [b c 1+t h w], float32."""


class Autoencoder(Protocol):
    """Autoencoder between pixels [b 3 1+T H W] in -1..1 and latents [b c 1+t h w]. Images are one-frame videos."""

    @property
    def factors(self) -> tuple[int, int, int]:
        """Down-sampling factors of time, rows and columns: T = t f_t, H = h f_h, W = w f_w."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        ...

    def encode(self, x: Tensor, chunk: int | None = None) -> LatentDistribution:
        """Encode clips, `chunk` pixel frames at a time (None: all at once)."""
        ...

    def decode(self, z: Tensor, chunk: int | None = None, tile: int | None = None) -> Tensor:
        """Decode clips, `chunk` latent frames at a time, in tiles with sides of `tile` latent cells (None: all at once)."""
        ...

    def to(self, device: torch.device) -> "Autoencoder":
        """Move the weights to a device, and return the autoencoder."""
        ...
