"""Seconds of a step in a Trainer."""

import time
from typing import Any

import lightning as L
import torch


class StepClock(L.Callback):
    """Measure the mean seconds of a step after some steps that warm up, all that happens between two steps included.

    The device is waited for at both ends alone, so that steps overlap as in training.

    Args:
        warm_up: steps before the first that counts.
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.seconds = 0.0
        self._done = 0
        self._began = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._done += 1
        if self._done == self.warm_up:
            _wait()
            self._began = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _wait()
        self.seconds = (time.perf_counter() - self._began) / (self._done - self.warm_up)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
