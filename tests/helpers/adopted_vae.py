"""An autoencoder of the embedded set's factors with random weights, adopted by a run without a training."""

from pathlib import Path

import torch

from tests.helpers.tiny_artifact import save
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.manifest import Manifest

TINY_VAE = VAEConfig(
    width=8,
    channel_multipliers=(1, 1, 2),
    strides=((2, 2, 2), (2, 2, 2)),
    num_res_blocks=(0, 1, 1),
    num_middle_blocks=1,
    norm="layer",
)


def adopt_tiny_vae(run: Path) -> Path:
    """Write the artifact of the stage vae into a run, and return its folder."""
    torch.manual_seed(0)
    statistics = {"mean": [0.0] * TINY_VAE.latent_channels, "std": [1.0] * TINY_VAE.latent_channels}
    save(run / "vae", VAE(TINY_VAE), card={"latents": statistics, "steps": 2})
    Manifest.open(run).finish("vae", run / "vae")
    return run / "vae"
