"""Exponential moving average (EMA) of the trained weights, for validation, sampling and export."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from walt_pl.runs.checkpoint import AVERAGES, check_floating, checked_averages
from walt_pl.training.strategies.shards import gather, local_shard, non_finite_pieces, rewriting, shard, trainable_parameters


class EMA(L.Callback):
    """Average every trainable parameter in float32; the raw weights train on unchanged.

    Every rank averages its local shard of the float32 weights: under ZeRO a part of them, otherwise all. Ranks communicate only to save.

    Args:
        decay: weight of the old average at each optimiser step; 0 switches the average off.
        warmup: the decay at a step is min(decay, (1 + step) / (warmup + step)), so that a short run forgets its first weights. With 10, it
            is 0.99 from step 890 on, 0.999 from step 8,990 and 0.9999 from step 89,990; 1 has no warm-up.
        cpu: keep the average in CPU memory, which costs a copy of the weights to the CPU at each step.

    Raises:
        ValueError: `decay` is not in [0, 1), or `warmup` is below 1.
    """

    def __init__(self, decay: float = 0.9999, warmup: int = 10, cpu: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be at least 0 and less than 1, got {decay}")
        if warmup < 1:
            raise ValueError(f"ema.warmup must be at least 1, got {warmup}")
        self.decay = decay
        self.warmup = warmup
        self.cpu = cpu
        self._average: dict[str, Tensor] = {}
        self._file: Path | None = None
        self._step = 0
        self._swapped = False

    # ---- Averaging ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # This cannot be earlier: DeepSpeed shards and restores the weights only after on_fit_start.
        if self.decay:
            self._step = trainer.global_step
            self._start(pl_module)

    @torch.no_grad()
    def _start(self, module: L.LightningModule) -> None:
        """Initialise the average with the present weights, or with the average of a checkpoint."""
        self._average = {name: self._float32_copy(piece) for name, piece in _local_shards(module)}
        if self._file is not None:
            with checked_averages(self._file) as path, safe_open(path, "pt") as saved:
                _check_names(self._file, saved.keys(), [name for name, _ in trainable_parameters(module)])
                for name, p in trainable_parameters(module):
                    full = saved.get_tensor(name)
                    check_floating({name: full}, self._file)
                    piece = shard(p, full)
                    if piece is not None:
                        self._average[name].copy_(piece)
            self._file = None

    def _float32_copy(self, piece: Tensor) -> Tensor:
        """Return a float32 copy on the device of the averages."""
        return piece.detach().to(device="cpu" if self.cpu else piece.device, dtype=torch.float32, copy=True)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self.decay or trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        pieces = [piece.to(self._average[name]) for name, piece in _local_shards(pl_module)]
        torch._foreach_lerp_(list(self._average.values()), pieces, 1 - self.decay_at(self._step))

    def decay_at(self, step: int) -> float:
        """Return the decay at an optimiser step.

        Args:
            step: optimiser step; the first one is 1.
        """
        return min(self.decay, (1 + step) / (self.warmup + step))

    # ---- Swapped with the weights ---------------------------------------------------------------------------------------

    @contextmanager
    def swap_weights(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Replace the module's weights by their averages inside the context; all ranks call it."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, module: L.LightningModule) -> None:
        """Swap the averages with the weights of the module."""
        if not self._average and self._file is not None:  # no training has started since the checkpoint was read
            self._start(module)
        if not self._average:
            return
        with rewriting(module):
            for name, piece in _local_shards(module):
                raw = self._float32_copy(piece)
                piece.copy_(self._average[name])
                self._average[name].copy_(raw)
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def non_finite(self, pl_module: L.LightningModule) -> str | None:
        """Describe nan and infinite values in the averages; None if there are none. All ranks call it."""
        return non_finite_pieces(pl_module, self._average) if self.decay else None

    # ---- On disk --------------------------------------------------------------------------------------------------------

    def whole(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """Gather the averages; all ranks call it.

        Returns:
            Parameter name -> average, gathered, float32, on the CPU of rank zero. The dictionary is empty on the other ranks.
        """
        assert not self._swapped, "the averages are in the weights' place"
        averages = {}
        for name, p in trainable_parameters(pl_module) if self._average else ():
            average = self._average.get(name)
            full = gather(p, None if average is None else average.to(p.device))
            if pl_module.trainer.is_global_zero:
                averages[name] = full.cpu().contiguous()
        return averages

    def save(self, folder: Path, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the averages into the folder of a checkpoint, if there are any; all ranks call it, rank zero writes."""
        averages = self.whole(pl_module)
        if averages:
            save_file(averages, folder / AVERAGES)

    def load(self, folder: Path) -> None:
        """Continue from the averages in the folder of a checkpoint, once training or validation starts."""
        if not self.decay:
            return
        if (folder / AVERAGES).exists():
            self._file = folder / AVERAGES
        else:
            rank_zero_warn(f"{folder} has no {AVERAGES}: it was written without an average, which begins with the weights as they are")


def find_averages(trainer: L.Trainer) -> EMA:
    """Return the callback of the averages, one that is switched off where the training has none."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), EMA(decay=0))  # type: ignore[attr-defined]


def _local_shards(module: L.LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Yield name and local shard of each trained weight of which this rank holds a part."""
    for name, p in trainable_parameters(module):
        piece = local_shard(p)
        if piece is not None:
            yield name, piece


def _check_names(file: Path, found: list[str], wanted: list[str]) -> None:
    if set(found) != set(wanted):
        missing, over = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise ValueError(f"{file} is of another model: {len(missing)} weights missing {missing[:3]}, {len(over)} too many {over[:3]}")
