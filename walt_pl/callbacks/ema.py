"""Exponential moving average of the trained weights: what is validated, sampled from and exported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from walt_pl.checkpoint import AVERAGES


class EMA(L.Callback):
    """Averages every trainable parameter in float32; the raw weights go on training untouched.

    Args:
        decay: share of the average that stays at each optimiser step; 0 switches the average off.
        warmup: the decay grows as (1 + step) / (warmup + step) until it reaches `decay`, so that a short run forgets its beginning.
    """

    def __init__(self, decay: float = 0.9999, warmup: int = 10) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be at least 0 and less than 1, got {decay}")
        self.decay, self.warmup = decay, warmup
        self._average: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] | None = None
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not earlier: some strategies restore weights and callback states only after on_fit_start.
        if self.decay:
            self._step = trainer.global_step
            self._start(pl_module)

    def _start(self, pl_module: L.LightningModule) -> None:
        """Begin with the weights as they are, or with the average of a checkpoint."""
        self._average = {name: p.detach().float().clone() for name, p in trained(pl_module)}
        if self._loaded is not None:
            for name, average in self._average.items():
                average.copy_(self._loaded[name])
            self._loaded = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self.decay or trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (self.warmup + self._step))
        torch._foreach_lerp_(list(self._average.values()), [p.float() for _, p in trained(pl_module)], 1 - decay)

    @contextmanager
    def swapped(self, pl_module: L.LightningModule) -> Iterator[None]:
        """The module with averaged weights, for as long as the context lasts."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: L.LightningModule) -> None:
        if not self._average and self._loaded is not None:  # nothing was trained since the checkpoint was read
            self._start(pl_module)
        if self._average:
            for name, p in trained(pl_module):
                raw = p.detach().float().clone()
                p.copy_(self._average[name])
                self._average[name].copy_(raw)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def save(self, folder: Path, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the average into a checkpoint's folder; all ranks call it."""
        if self._average and trainer.is_global_zero:
            save_file({name: average.contiguous() for name, average in self._average.items()}, folder / AVERAGES)

    def load(self, folder: Path) -> None:
        """Begin with the average of a checkpoint's folder."""
        if (folder / AVERAGES).exists():
            self._loaded = load_file(folder / AVERAGES)


def trained(pl_module: L.LightningModule) -> list[tuple[str, Tensor]]:
    """Trainable parameters with their names."""
    return [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]
