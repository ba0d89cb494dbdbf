"""Normalisation of latents to zero mean and unit variance per channel. The autoencoder's artifact holds the statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from walt_pl.blocks.transfer import to_device


@dataclass(frozen=True)
class LatentNormalizer:
    """Mean and standard deviation of each latent channel, float32 [c].

    They are plain tensors, not buffers: an engine in bfloat16 must not cast them.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "LatentNormalizer":
        """Read the statistics from an autoencoder's card.

        Raises:
            ValueError: the card has none, or a deviation of zero.
        """
        latents = card.get("latents")
        if not latents:
            raise ValueError(
                "the autoencoder's card.json has no latent statistics; train it to its end, export its checkpoint again with "
                "--index FILE.parquet, or set model.diffusion.normalize_latents to false"
            )
        mean, std = (torch.tensor(latents[name], dtype=torch.float32) for name in ("mean", "std"))
        if not (std > 0).all():
            raise ValueError("the autoencoder's card.json has a latent channel without spread; train it again, or normalize_latents false")
        return cls(mean, std)

    @classmethod
    def choose(cls, card: Mapping[str, Any], channels: int, normalize: bool) -> "LatentNormalizer":
        """Return the normaliser of a denoiser: that of the autoencoder's card, or the identity if its latents are not normalised.

        Raises:
            ValueError: the statistics are wanted, and the card has none, or those of another number of channels.
        """
        if not normalize:
            return cls.identity(channels)
        normalizer = cls.from_card(card)
        if len(normalizer.mean) != channels:
            raise ValueError(
                f"the autoencoder's card.json has latent statistics of {len(normalizer.mean)} channels, and the denoiser has {channels}; "
                "take the autoencoder that the denoiser was trained on"
            )
        return normalizer

    @classmethod
    def identity(cls, channels: int) -> "LatentNormalizer":
        """Return the normaliser that leaves latents of `channels` channels unchanged."""
        return cls(torch.zeros(channels, dtype=torch.float32), torch.ones(channels, dtype=torch.float32))

    def normalize(self, z: Tensor) -> Tensor:
        """Normalise raw latents [f c h w] to zero mean and unit variance."""
        return (z - self._broadcast(self.mean, z)) / self._broadcast(self.std, z)

    def normalize_clips(self, z: Tensor) -> Tensor:
        """Normalise raw latents of clips [b c t h w]."""
        return self.normalize(z.transpose(1, 2)).transpose(1, 2)

    def denormalize(self, z: Tensor) -> Tensor:
        """Return raw latents [f c h w], the decoder's input, from normalised ones: the inverse of `normalize`."""
        return z * self._broadcast(self.std, z) + self._broadcast(self.mean, z)

    @staticmethod
    def _broadcast(value: Tensor, like: Tensor) -> Tensor:
        return to_device(value, like.device)[:, None, None]
