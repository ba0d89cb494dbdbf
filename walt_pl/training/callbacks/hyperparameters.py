"""Hyper-parameters of the optimiser from the command line in place of those in a checkpoint."""

from typing import Any, cast

import lightning as L
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


class Hyperparameters(L.Callback):
    """Reset learning rate, weight decay and the like to the configured values, after a checkpoint has overwritten them.

    The state of an optimiser holds its hyper-parameters beside its moments, and the state of a schedule holds its initial learning rate. If
    these were restored, a resumed run would silently ignore a new value. Moments, step counts and the position in the schedule are kept.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[list[float | Tensor], list[dict[str, Any]]]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the configured values: optimisers exist, and no strategy has restored their state yet."""
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
    """Return the schedule of every optimiser (stages/optimisation.py). It refers to the optimiser itself, not to an engine's wrapper."""
    return [cast(LambdaLR, config.scheduler) for config in trainer.lr_scheduler_configs]
