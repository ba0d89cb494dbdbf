"""What the command line says of the optimiser, not what a checkpoint says."""

from typing import Any, cast

import lightning as L
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


class Hyperparameters(L.Callback):
    """Puts learning rate, weight decay and the like back to what was asked for, after a checkpoint has overwritten them.

    An optimiser's state holds its hyper-parameters beside its moments, and a schedule's holds the learning rate it began with: restored
    as they are, a run that goes on would ignore a new value without a word. Moments, steps and the place in the schedule are kept.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[list[float | Tensor], list[dict[str, Any]]]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Optimisers are made, and nothing of theirs is restored yet, whatever the strategy."""
        for schedule in _schedules(trainer):
            groups = [{name: group[name] for name in schedule.optimizer.defaults} for group in schedule.optimizer.param_groups]
            self._asked.append((list(schedule.base_lrs), groups))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for schedule, (rates, groups) in zip(_schedules(trainer), self._asked, strict=True):
            schedule.base_lrs = rates
            for i, group in enumerate(schedule.optimizer.param_groups):
                rate = rates[i] * schedule.lr_lambdas[i](schedule.last_epoch)
                group.update({**groups[i], "initial_lr": rates[i], "lr": rate})


def _schedules(trainer: L.Trainer) -> list[LambdaLR]:
    """Of every optimiser (stages/optimisation.py); they hold the optimiser itself, whatever engine is around it."""
    return [cast(LambdaLR, config.scheduler) for config in trainer.lr_scheduler_configs]
