"""Log the seconds that torch.compile takes."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import counters


class CompileTime(L.Callback):
    """Log the seconds spent compiling since the start, and say when a warm-up is over.

    `speed/compile_seconds` is written at each step that compiled something. Backward passes compile when they first run.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._graphs = 0
        self._logged = 0.0
        self._said = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._graphs = counters["stats"]["unique_graphs"]
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        callback_handler.remove_start_callback(self._begin)
        callback_handler.remove_end_callback(self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.seconds > self._logged:
            self._logged = self.seconds
            for logger in trainer.loggers:  # not by `log`, which writes every so many steps, and copies the number to the device
                logger.log_metrics({"speed/compile_seconds": self.seconds}, trainer.global_step)
        elif self.seconds > self._said:
            graphs = counters["stats"]["unique_graphs"] - self._graphs
            rank_zero_info(f"torch.compile: {graphs} graphs in {self.seconds:.1f} s until step {trainer.global_step - 1}")
            self._said = self.seconds
