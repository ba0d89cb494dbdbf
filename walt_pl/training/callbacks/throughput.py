"""Log the speed of the training, and the share of time that it waits for data."""

import time
from typing import Any

import lightning as L

from walt_pl.data.batch import JointBatch


class Throughput(L.Callback):
    """Log clips and latent or pixel positions per second, the share of time spent waiting for data, and the learning rate.

    Args:
        every_n_steps: optimiser steps between two values.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"throughput.every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._began = self._ended = 0.0
        self._waited = self._clips = self._tokens = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reset()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: JointBatch, batch_idx: int) -> None:
        self._clips += (len(batch.videos) + len(batch.images)) * trainer.world_size
        self._tokens += (batch.videos[:, 0].numel() + batch.images[:, 0].numel()) * trainer.world_size
        self._ended = time.perf_counter()
        if trainer.global_step % self.every_n_steps == 0:
            elapsed = self._ended - self._began
            pl_module.log_dict(
                {
                    "speed/clips_per_second": self._clips / elapsed,
                    "speed/tokens_per_second": self._tokens / elapsed,
                    "speed/waiting_for_data": self._waited / elapsed,
                    "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                }
            )
            self.reset()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new value, so that time spent outside of the steps counts for none."""
        self._began = self._ended = time.perf_counter()
        self._waited = self._clips = self._tokens = 0.0
