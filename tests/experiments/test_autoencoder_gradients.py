"""DDP does not search for unused weights: every weight of every autoencoder has a gradient in every step."""

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from stages.vae import VAEStage
from tests.helpers.experiments import FILES, planned
from tests.helpers.tiny_vae import sgd, tiny_batch, train
from walt_pl.models.vae import VAE, VAEConfig

CONFIGS = [path for path in FILES if path.stem.startswith("vae") and path.parent.name not in ("common", "ablations")]
MAKE_UPS = ((1, 0), (0, 1), (1, 1))
"""Videos and images of a batch."""


def small(config: Path) -> VAEConfig:
    """Return the experiment's depth, kernels, strides and norm, at a small width."""
    size: VAEConfig = planned("--config", str(config)).model.vae.config
    return replace(size, width=32 if size.norm == "group" else 8)


def clips(size: VAEConfig, videos: int, images: int) -> list[Tensor]:
    t, h, w = size.factors
    return [torch.randn(count, 3, frames, 2 * h, 2 * w) for count, frames in ((videos, 1 + 2 * t), (images, 1))]


class Gradients(L.Callback):
    """Names of weights without a gradient after each step."""

    def __init__(self) -> None:
        self.missing: list[list[str]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.missing.append(missing(pl_module.vae))  # type: ignore[arg-type]


def missing(network: torch.nn.Module) -> list[str]:
    return [name for name, p in network.named_parameters() if p.grad is None]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_experiment_vae_has_a_gradient_of_every_weight_in_every_step(config: Path) -> None:
    """With videos alone, images alone, and both; on the meta device by the operators of GPUs."""
    size, seen = small(config), Gradients()
    stage = VAEStage(size, sgd, adversarial_weight=0.0, warmup_steps=0)
    batches = [tiny_batch(1.0, *counts) for counts in MAKE_UPS]
    for batch, counts in zip(batches, MAKE_UPS, strict=True):
        batch.videos, batch.images = clips(size, *counts)
    train(stage, batches, seen)
    assert seen.missing == [[]] * 3
    vae = VAE(size).to("meta")
    for counts in MAKE_UPS:
        vae.zero_grad()
        posteriors = [vae.encode(x.to("meta")) for x in clips(size, *counts) if len(x)]
        torch.stack([vae.decode(one.sample(torch.randn_like(one.mean))).sum() for one in posteriors]).sum().backward()
        assert not missing(vae)
