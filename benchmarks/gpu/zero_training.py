"""A short training under a stage of ZeRO."""

import math
from typing import Any, Literal

import lightning as L

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.stage_training import average, build_data, build_stage, build_trainer
from benchmarks.gpu.step_clock import StepClock
from walt_pl.training.strategies.zero import ZeROStrategy

VIDEOS, STEPS, WARM_UP = 8, 6, 2


class Losses(L.Callback):
    """Keep the loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


def train(bench: Bench, number: Literal[1, 2, 3]) -> dict[str, Figure]:
    """Return milliseconds of a step and the losses.

    Raises:
        ArithmeticError: a loss is not finite.
    """
    stage = build_stage("ucf101/base_l", {"denoiser": {"depth": 4}})
    losses, clock = Losses(), StepClock(WARM_UP)
    trainer = build_trainer(bench, bench.folder, STEPS, [average(), losses, clock], ZeROStrategy(number, bucket=20_000_000))
    trainer.fit(stage, build_data(stage, VIDEOS, 0, (0, 0, 0)))
    if not all(map(math.isfinite, losses.seen)):
        raise ArithmeticError(f"losses that are not finite: {losses.seen}")
    return {"ms": 1e3 * clock.seconds, **bench.peak_gb(), "first_loss": losses.seen[0], "last_loss": losses.seen[-1]}
