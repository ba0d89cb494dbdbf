"""Encode pixels with a trained autoencoder, for the latent caches."""

import torch
from torch import Tensor

from walt_pl.blocks.compute import compute_dtype
from walt_pl.data.cache import Encode
from walt_pl.runs import artifact


def load_encoder(vae: str, device: torch.device) -> Encode:
    """Return the function that encodes pixels [b 3 t h w] in -1..1 to latent means [b c t h w].

    Args:
        vae: Folder of the autoencoder's artifact.
        device: Device to encode on.
    """
    dtype = compute_dtype(device)
    model = artifact.load(vae, device=device).model("vae")

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            mean: Tensor = model.encode(pixels.to(device)).mean  # type: ignore[operator]  # nn.Module attributes are untyped
        return mean

    return encode
