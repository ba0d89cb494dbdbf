"""A training that is slow at its first start, so that something can happen to it."""

import os
import time
from typing import Any

import lightning as L


class SlowStart(L.Callback):
    """Wait before each step while a variable of the environment is not set.

    Args:
        seconds: time of each wait.
        variable: name of the variable, which a later start has.
    """

    def __init__(self, seconds: float, variable: str) -> None:
        self.seconds = 0.0 if variable in os.environ else seconds

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        time.sleep(self.seconds)
