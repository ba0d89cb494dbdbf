"""Print progress as plain lines, for output over ssh or to a file."""

import time
from datetime import timedelta
from typing import Any

import lightning as L

from walt_pl.training.figures import Figures
from walt_pl.training.pace import Pace


class TextProgress(L.Callback):
    """Print step, pace, time left and losses if there is no terminal for a progress bar.

    The first line comes after the first step, further lines at intervals, the last one after the last step.

    Args:
        seconds: seconds between two lines.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._printed = 0.0
        self._last = 0
        self._pace: Pace | None = None
        self._figures = Figures()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pace = Pace(trainer, time.monotonic())
        self._printed = float("-inf")
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if now - self._printed >= self.seconds:
            self._print(trainer, now)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._last:
            self._print(trainer, time.monotonic())

    def _print(self, trainer: L.Trainer, now: float) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        self._printed, self._last = now, step
        assert self._pace is not None
        pace = self._pace.seconds_a_step(now)
        total, seconds = self._pace.total, self._pace.seconds_left(now)
        end = "" if total is None else f"/{total}"
        left = "" if seconds is None else f"  {timedelta(seconds=round(seconds))} left"
        values = self._figures.render(trainer, fresh=True)  # waits for the GPU, as rarely as a line is printed
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  step {step}{end}  {pace:.2f} s a step{left}  {values}", flush=True)
