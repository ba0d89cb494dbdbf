"""Randomness that modules draw by themselves, dropout above all."""

import lightning as L
import torch

from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.rng import splitmix64


class Reseed(L.Callback):
    """Seeds torch's own generators from (seed, step, first slot of this rank) before each step.

    What the stages draw comes from `diffusion.rng` and needs no state; this is for what is drawn inside modules, so that it, too,
    is the same after a restart and different on every rank.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(splitmix64(self.seed, step, int(batch.global_batch_index[0])))
