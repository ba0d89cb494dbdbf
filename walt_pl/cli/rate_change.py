"""Say how the learning rate changes where a finished training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.optimisation import LRSchedule, lr_factor


def describe_rate_change(before: Mapping[str, Any], now: Mapping[str, Any], steps: int) -> str:
    """Say how the learning rate changes where a training goes on with other settings.

    Args:
        before: resolved configuration of the training until now.
        now: that of the training that goes on.
        steps: optimiser steps done.

    Returns:
        One line; empty if the rate stays constant, or if a configuration does not say it.
    """
    old, new = _Schedule.of(before), _Schedule.of(now)
    if old is None or new is None or (old.rate(steps - 1) == new.rate(steps) and new.lr_schedule == "constant"):
        return ""
    said = f"learning rate: {old.rate(steps - 1):.3g} at step {steps}, {new.rate(steps):.3g} at step {steps + 1}"
    if new.lr_schedule == "constant":
        return f"{said} and from there on (constant; --model.optimizer.lr sets another)"
    ended = f"the cosine over {old.max_steps} steps had ended; " if old.lr_schedule == "cosine" and steps >= old.max_steps else ""
    return f"{said}: {ended}the cosine over {new.max_steps} steps falls to 0 from here (--model.lr_schedule constant stays at {new.lr:.3g})"


@dataclass(frozen=True)
class _Schedule:
    """The settings of a learning-rate schedule."""

    lr: float
    lr_schedule: LRSchedule
    warmup_steps: int
    max_steps: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Schedule | None:
        """Return the schedule of a configuration; None if it is not known."""
        try:
            model = config["model"]["init_args"]
            lr = float(model["optimizer"]["init_args"]["lr"])
            return cls(lr, model["lr_schedule"], int(model["warmup_steps"]), int(config["trainer"]["max_steps"]))
        except (KeyError, TypeError, ValueError):
            return None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.lr * lr_factor(step, self.warmup_steps, self.max_steps, self.lr_schedule)
