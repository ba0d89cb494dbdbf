"""Write the progress of a training to a file that `status` reads."""

import contextlib
import time
from pathlib import Path
from typing import Any

import lightning as L

from walt_pl.lock import Holder
from walt_pl.runs.progress import TrainingProgress
from walt_pl.training.pace import Pace


class ProgressFile(L.Callback):
    """Write step, total and speed after the first step, and then at most once in so many seconds, on rank zero.

    Args:
        folder: folder of the training; the file is progress.json in it.
        checkpoints: folder of the checkpoints, which is noted in the file.
        command: command that goes on after a stop, which is noted in the file.
        seconds: least number of seconds between two writes.
    """

    def __init__(self, folder: Path, checkpoints: Path, command: str = "", seconds: float = 10.0) -> None:
        self.folder = folder
        self.checkpoints = checkpoints
        self.command = command
        self.seconds = seconds
        self._written = float("-inf")
        self._first = 0
        self._pace: Pace | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pace = Pace(trainer, time.monotonic())
        self._written = float("-inf")
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now, step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero or step == self._first or now - self._written < self.seconds:
            return
        self._written = now
        assert self._pace is not None
        total, speed = self._pace.total, 1 / self._pace.seconds_a_step(now)
        this = Holder.here()
        checkpoints = str(self.checkpoints.resolve())
        progress = TrainingProgress(step, total, speed, checkpoints, self.command, process=this.pid, born=this.born)
        # On a full disk `status` shows an older step. Checkpoints warn of the disk.
        with contextlib.suppress(OSError):
            progress.write(self.folder)
