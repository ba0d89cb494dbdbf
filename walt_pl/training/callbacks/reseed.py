"""Seed the random numbers that modules draw by themselves, mostly for dropout."""

import lightning as L
import torch

from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.rng import splitmix64


class Reseed(L.Callback):
    """Seed torch's own generators from (seed, step, first global batch index of this rank) before each step.

    The random numbers of the stages come from `diffusion.rng` and need no state. This callback is for random numbers drawn inside modules:
    they, too, are equal after a restart and differ between ranks.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(splitmix64(self.seed, step, int(batch.global_batch_index[0])))
