"""Log the speed of the training, its share of the device's peak, and the share of time that it waits for data."""

import time
from collections import Counter
from typing import Any

import lightning as L
import torch

from walt_pl.blocks.compute import normalize_precision
from walt_pl.data.batch import JointBatch
from walt_pl.training.gpu_peaks import peak_flops
from walt_pl.training.step_flops import has_discriminator, step_flops

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Dtype of matrix products by the trainer's precision."""


class Throughput(L.Callback):
    """Log clips and latent or pixel positions per second, the share of time spent waiting for data, and the learning rate.

    speed/clips_per_second, speed/tokens_per_second: of all ranks together. speed/waiting_for_data: share of the time, 0..1.
    speed/tflops_per_gpu: model operations of this rank's steps over the time since the last value (`step_flops` defines them).
    speed/mfu: that rate over the device's dense bfloat16 peak (walt_pl/training/gpu_peaks.py); over a measured matrix product on CPUs
    and unknown GPUs. speed/gpu_memory_gb: most memory that tensors held since the last value, 1e9 bytes; on GPUs alone.
    The first steps on a GPU, up to the first value, give a learning rate alone: they compile layers and choose kernels.

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
        self._last_step = 0
        self._warm = False
        self._waited = self._clips = self._tokens = 0.0
        self._steps: Counter[tuple[Any, ...]] = Counter()
        self._uncounted: dict[tuple[Any, ...], JointBatch] = {}
        self._flops: dict[tuple[Any, ...], float | None] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        self._warm = pl_module.device.type != "cuda"
        self.reset()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: JointBatch, batch_idx: int) -> None:
        self._clips += (len(batch.videos) + len(batch.images)) * trainer.world_size
        self._tokens += (batch.videos[:, 0].numel() + batch.images[:, 0].numel()) * trainer.world_size
        self._note_shape(pl_module, batch, trainer.global_step)
        self._ended = time.perf_counter()
        stepped = trainer.global_step != self._last_step  # with accumulate_grad_batches, a step has several batches
        self._last_step = trainer.global_step
        if stepped and trainer.global_step % self.every_n_steps == 0:
            values = {"train/learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"])}
            if self._warm:
                values |= self._speeds(trainer, pl_module)
            self._warm = True
            # Tensors of the host: Lightning would send a number to the device, and wait for it.
            pl_module.log_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
            self.reset()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new value, so that time spent outside of the steps counts for none."""
        self._began = self._ended = time.perf_counter()
        self._waited = self._clips = self._tokens = 0.0
        self._steps.clear()

    def _speeds(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        elapsed = self._ended - self._began
        return {
            "speed/clips_per_second": self._clips / elapsed,
            "speed/tokens_per_second": self._tokens / elapsed,
            "speed/waiting_for_data": self._waited / elapsed,
            **self._utilisation(trainer, pl_module, elapsed),
        }

    def _note_shape(self, pl_module: L.LightningModule, batch: JointBatch, step: int) -> None:
        """Note a step by the shapes on which its operations depend. The first batch of each is kept until the next value."""
        key = (batch.videos.shape, batch.images.shape, has_discriminator(pl_module, step - 1))
        self._steps[key] += 1
        if key not in self._flops:
            self._uncounted.setdefault(key, batch)

    def _utilisation(self, trainer: L.Trainer, pl_module: L.LightningModule, elapsed: float) -> dict[str, float]:
        """Return rate, share of the peak, and memory of a GPU. Only the first value counts operations, and may measure the peak."""
        values = {}
        for key, batch in self._uncounted.items():
            self._flops[key] = step_flops(pl_module, batch, trainer.global_step - 1)
        self._uncounted.clear()
        flops = [self._flops[key] for key in self._steps.elements()]
        known = [value for value in flops if value is not None]
        device = pl_module.device
        if known and len(known) == len(flops):
            rate = sum(known) / elapsed
            values["speed/tflops_per_gpu"] = rate / 1e12
            values["speed/mfu"] = rate / peak_flops(device, DTYPES[normalize_precision(trainer.precision)])
        if device.type == "cuda":
            values["speed/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        return values
