"""An autoencoder stage of a few thousand weights, a batch for it, and a trainer that writes down what it did."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from stages.vae import VAEStage
from walt_pl.data.batch import JointBatch
from walt_pl.models.discriminator import DiscriminatorConfig
from walt_pl.models.vae import VAEConfig

SIZE = VAEConfig(
    width=8, channel_multipliers=(1, 1), strides=((2, 2, 2),), num_res_blocks=(0, 1), num_middle_blocks=0, norm="layer", latent_channels=2
)
DISCRIMINATOR = DiscriminatorConfig(width=4, channel_multipliers=(2,), size=(8, 8))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2, betas=(0.0, 0.99))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """One step moves each weight by minus its gradient."""
    return torch.optim.SGD(parameters, lr=1.0)


def frozen(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of a network that is to stay as it is."""
    return torch.optim.SGD(parameters, lr=0.0)


def tiny_stage(optimizer: Any = adam, **settings: Any) -> VAEStage:
    torch.manual_seed(0)
    return VAEStage(SIZE, optimizer, DISCRIMINATOR, warmup_steps=0, lr_schedule="constant", **settings)


def tiny_batch(scale: float = 1.0, videos: int = 2, images: int = 3, seed: int = 0) -> JointBatch:
    generator = torch.Generator().manual_seed(seed)
    samples = videos + images
    return JointBatch(
        videos=scale * torch.randn(videos, 3, 5, 8, 8, generator=generator),
        images=scale * torch.randn(images, 3, 1, 8, 8, generator=generator),
        captions=[""] * samples,
        labels=torch.arange(samples),
        weight=torch.ones(samples),
        global_batch_index=torch.arange(samples),
        low_res_videos=None,
        low_res_images=None,
        space="pixels",
        paths=[""] * samples,
    )


class Seen(L.Callback):
    """Logged values, step by step, and whether each network moved."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.moved: list[tuple[bool, bool]] = []
        self._before: list[list[Tensor]] = []

    def _weights(self, module: Any) -> list[list[Tensor]]:
        networks = [module.vae, torch.nn.Module() if module.discriminator is None else module.discriminator]
        return [[p.detach().clone() for p in network.parameters()] for network in networks]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._before = self._weights(pl_module)
        self.logged.append({})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pairs = zip(self._before, self._weights(pl_module), strict=True)
        vae, discriminator = (any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs)
        self.moved.append((vae, discriminator))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        log = pl_module.log

        def record(name: str, value: Any, **settings: Any) -> None:
            self.logged[-1][name] = float(value)
            log(name, value, **settings)

        pl_module.log = record  # type: ignore[method-assign,assignment]


def train(module: VAEStage, batches: list[JointBatch], *more: L.Callback, folder: Path | None = None, **trainer: Any) -> Seen:
    seen = Seen()
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings |= {"accelerator": "cpu", "devices": 1, "max_steps": len(batches), "callbacks": [*more, seen], **trainer}
    L.Trainer(**settings).fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return seen
