"""Exponential moving average of the trained weights: what is validated, sampled from and exported."""

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

from walt_pl.runs.checkpoint import AVERAGES
from walt_pl.training.strategies.shards import gather, local_shard, non_finite_pieces, rewriting, shard, trainable_parameters


class EMA(L.Callback):
    """Averages every trainable parameter in float32; the raw weights go on training untouched.

    Every rank averages what it holds of the float32 weights: under ZeRO its shard of them, otherwise all. Nothing is sent between ranks
    but to save.

    Args:
        decay: share of the average that stays at each optimiser step; 0 switches the average off.
        warmup: the decay at a step is min(decay, (1 + step) / (warmup + step)), so that a short run forgets its beginning. With 10, it is
            0.99 from step 890 on, 0.999 from step 8,990 and 0.9999 from step 89,990; 1 has no warm-up.
        cpu: keep the average in the CPU's memory, at the price of a copy of the weights there at each step.
    """

    def __init__(self, decay: float = 0.9999, warmup: int = 10, cpu: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be at least 0 and less than 1, got {decay}")
        self.decay, self.warmup, self.cpu = decay, warmup, cpu
        self._average: dict[str, Tensor] = {}
        self._file: Path | None = None
        self._step = 0
        self._swapped = False

    # ---- Averaging ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not earlier: DeepSpeed shards the weights and restores them only after on_fit_start.
        if self.decay:
            self._step = trainer.global_step
            self._start(pl_module)

    @torch.no_grad()
    def _start(self, module: L.LightningModule) -> None:
        """Begin with the weights as they are, or with the average of a checkpoint."""
        self._average = {name: self._kept(piece) for name, piece in _pieces(module)}
        if self._file is not None:
            with safe_open(self._file, "pt") as saved:
                _check_names(self._file, saved.keys(), [name for name, _ in trainable_parameters(module)])
                for name, p in trainable_parameters(module):
                    piece = shard(p, saved.get_tensor(name))
                    if piece is not None:
                        self._average[name].copy_(piece)
            self._file = None

    def _kept(self, piece: Tensor) -> Tensor:
        """A float32 copy where averages are kept."""
        return piece.detach().to(device="cpu" if self.cpu else piece.device, dtype=torch.float32, copy=True)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self.decay or trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        pieces = [piece.to(self._average[name]) for name, piece in _pieces(pl_module)]
        torch._foreach_lerp_(list(self._average.values()), pieces, 1 - self.decay_at(self._step))

    def decay_at(self, step: int) -> float:
        """Return the share of the average that stays at an optimiser step (the first is 1)."""
        return min(self.decay, (1 + step) / (self.warmup + step))

    # ---- In the place of the weights ------------------------------------------------------------------------------------

    @contextmanager
    def swapped(self, pl_module: L.LightningModule) -> Iterator[None]:
        """The module with averaged weights, for as long as the context lasts; all ranks together."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, module: L.LightningModule) -> None:
        if not self._average and self._file is not None:  # nothing was trained since the checkpoint was read
            self._start(module)
        if not self._average:
            return
        with rewriting(module):
            for name, piece in _pieces(module):
                raw = self._kept(piece)
                piece.copy_(self._average[name])
                self._average[name].copy_(raw)
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def non_finite(self, pl_module: L.LightningModule) -> str | None:
        """All ranks together: what is nan or infinite in the averages; None for nothing."""
        return non_finite_pieces(pl_module, self._average) if self.decay else None

    # ---- On disk --------------------------------------------------------------------------------------------------------

    def whole(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """The averages by parameter name, whole, float32, in the CPU's memory of rank zero (the others get none); all ranks together."""
        assert not self._swapped, "the averages are in the weights' place"
        averages = {}
        for name, p in trainable_parameters(pl_module) if self._average else ():
            average = self._average.get(name)
            full = gather(p, None if average is None else average.to(p.device))
            if pl_module.trainer.is_global_zero:
                averages[name] = full.cpu().contiguous()
        return averages

    def save(self, folder: Path, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the averages into a checkpoint's folder, where there are any; all ranks call it, rank zero writes."""
        averages = self.whole(pl_module)
        if averages:
            save_file(averages, folder / AVERAGES)

    def load(self, folder: Path) -> None:
        """Go on from the averages in a checkpoint's folder, once training or validation starts."""
        if not self.decay:
            return
        if (folder / AVERAGES).exists():
            self._file = folder / AVERAGES
        else:
            rank_zero_warn(f"{folder} has no {AVERAGES}: it was written without an average, which begins with the weights as they are")


def _pieces(module: L.LightningModule) -> Iterator[tuple[str, Tensor]]:
    """What this rank holds of each trained weight, where it holds any of it."""
    for name, p in trainable_parameters(module):
        piece = local_shard(p)
        if piece is not None:
            yield name, piece


def _check_names(file: Path, found: list[str], wanted: list[str]) -> None:
    if set(found) != set(wanted):
        missing, over = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise ValueError(f"{file} is of another model: {len(missing)} weights missing {missing[:3]}, {len(over)} too many {over[:3]}")
