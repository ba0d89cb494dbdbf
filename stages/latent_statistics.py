"""Mean and standard deviation of each latent channel, over training data that an autoencoder encodes."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from walt_pl.data.batch import JointBatch
from walt_pl.models.autoencoder import Autoencoder

ENCODED_AT_ONCE = 4
"""Clips that are encoded at once for the latent statistics: as many as a GPU's memory holds in training."""


@torch.no_grad()
def training_latents(vae: Autoencoder, loader: Iterable[JointBatch], batches: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the posterior means of the first `batches` training batches, a few clips at a time. Images are one-frame clips."""
    for _, batch in zip(range(batches), loader, strict=False):
        cut = len(batch.videos)
        for x in (batch.videos[batch.weight[:cut] > 0], batch.images[batch.weight[cut:] > 0]):
            if len(x):
                yield from (vae.encode(few.to(device)).mean for few in x.split(ENCODED_AT_ONCE))


def latent_sums(latents: Iterable[Tensor], channels: int) -> Tensor:
    """Return sum, sum of squares and count of each channel of clips [b c t h w], float64 [3 c]. Sums of several ranks can be added."""
    total = torch.zeros(3, channels, dtype=torch.float64)
    for z in latents:
        flat = z.movedim(1, 0).flatten(1).double().cpu()
        total += torch.stack([flat.sum(dim=1), flat.square().sum(dim=1), torch.full((len(flat),), float(flat.shape[1])).double()])
    return total


def latent_statistics(sums: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel.

    Args:
        sums: from `latent_sums`, [3 c].

    Raises:
        ValueError: the sums contain no clip.
    """
    if not bool(sums[2].all()):
        raise ValueError("model.statistics_batches: the training data has no clip that can be read to measure the latents on")
    mean = sums[0] / sums[2]
    std = (sums[1] / sums[2] - mean.square()).clamp(min=1e-12).sqrt()
    return {"mean": mean.tolist(), "std": std.tolist()}
