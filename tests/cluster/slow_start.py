"""A training that is slow at its first start, so that something can happen to it."""

import os
import time
from typing import Any

import lightning as L


class SlowStart(L.Callback):
    """Wait before each step from a certain one on, while a variable of the environment is not set.

    Args:
        step: first step that is slow.
        seconds: time of each wait.
        variable: name of the variable, which a later start has.
    """

    def __init__(self, step: int, seconds: float, variable: str) -> None:
        self.step = step
        self.seconds = 0.0 if variable in os.environ else seconds

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            time.sleep(self.seconds)
