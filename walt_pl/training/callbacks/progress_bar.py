"""Show one progress bar over all steps of a training, on a terminal."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from walt_pl.training.figures import Figures
from walt_pl.training.pace import Pace

SECONDS = 0.25
"""Least time between two updates."""


class ProgressBar(L.Callback):
    """Show step, total, time left and losses in one bar. A validation has a second bar, which is removed at its end.

    Args:
        console: console to draw on; that of standard output when None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._training: TaskID | None = None
        self._validation: TaskID | None = None
        self._updated = 0.0
        self._pace: Pace | None = None
        self._figures = Figures()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The bar comes with the first step: until then other callbacks may refuse the start.
        self._pace = Pace(trainer, time.monotonic())
        self._updated = float("-inf")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now, step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and (now - self._updated >= SECONDS or step == trainer.max_steps):
            self._updated = now
            self._show_training(trainer, fresh=step == trainer.max_steps)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            batches = sum(trainer.num_val_batches)
            total = batches if batches < float("inf") else None
            self._validation = self._start().add_task("validation", total=total, count="validation", values="")

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._progress is not None and self._validation is not None:
            self._progress.advance(self._validation)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None
        if self._training is None:
            self._stop()  # of the command `validate`, which prints a table

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._training is not None:
            self._show_training(trainer, fresh=True)  # with the figures of the last validation
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _start(self) -> Progress:
        """Return the bars, which are drawn from now on."""
        if self._progress is None:
            console = self.console or Console(markup=False, highlight=False, emoji=False)
            columns = (TextColumn("{task.fields[count]}", markup=False), BarColumn(20), TextColumn("{task.fields[values]}", markup=False))
            self._progress = Progress(*columns, console=console, refresh_per_second=4)
            self._progress.start()
        return self._progress

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._training = self._validation = None

    def _show_training(self, trainer: L.Trainer, fresh: bool) -> None:
        assert self._pace is not None
        step, total, left = trainer.global_step, self._pace.total, self._pace.seconds_left(time.monotonic())
        figures = self._figures.render(trainer, fresh)
        values = "  ".join([*([] if left is None else [f"{timedelta(seconds=round(left))} left"]), *([figures] if figures else [])])
        progress, count = self._start(), f"step {step}" + ("" if total is None else f"/{total}")
        if self._training is None:
            self._training = progress.add_task("training", total=total, completed=step, count=count, values=values)
        else:
            progress.update(self._training, completed=step, count=count, values=values)
