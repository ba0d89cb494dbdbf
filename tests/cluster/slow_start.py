"""A training that is slow until something has happened to it."""

import time
from pathlib import Path
from typing import Any

import lightning as L


class SlowStart(L.Callback):
    """Wait before each step from a certain one on, until a file is there.

    Args:
        step: first step that is slow.
        seconds: time of each wait.
        until: the file.
    """

    def __init__(self, step: int, seconds: float, until: str) -> None:
        self.step = step
        self.seconds = seconds
        self.until = Path(until)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        end = time.monotonic() + self.seconds
        while trainer.global_step >= self.step and time.monotonic() < end and not self.until.exists():
            time.sleep(0.1)
