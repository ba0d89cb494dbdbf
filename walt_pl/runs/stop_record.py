"""The record of a training that stopped before its end."""

from dataclasses import dataclass

from walt_pl.plain_records import check_range

MAX_STEPS = 2**53
"""Largest number of steps of a training."""


@dataclass(frozen=True)
class StopRecord:
    """The point at which a training stopped before its end."""

    step: int
    """Optimiser steps that the newest checkpoint has."""
    max_steps: int | None
    """Optimiser steps of the complete training; None if it has no such limit."""

    def __post_init__(self) -> None:
        check_range(self.step, "step", MAX_STEPS)
        check_range(self.max_steps, "max_steps", MAX_STEPS, -1)

    def __str__(self) -> str:
        return f"stopped at step {self.step}" + ("" if self.max_steps is None else f" of {self.max_steps}")
