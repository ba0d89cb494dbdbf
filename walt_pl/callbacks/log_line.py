"""A line now and then for those who watch over ssh or read a file."""

import time
from typing import Any

import lightning as L


class LogLine(L.Callback):
    """Prints step, losses and time left where there is no terminal for a progress bar.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._began = self._printed = 0.0
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._printed = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if trainer.is_global_zero and now - self._printed >= self.seconds:
            self._printed = now
            pace = (now - self._began) / max(1, trainer.global_step - self._first)
            left = (trainer.max_steps - trainer.global_step) * pace / 60
            values = "  ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items() if name != "v_num")
            print(
                f"step {trainer.global_step}/{trainer.max_steps}  {pace:.2f} s a step  {left:.1f} min left  {values}",
                flush=True,
            )
