"""Decide whether a command trains a finished stage longer, by its limits and those of the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from walt_pl.runs.card import TRAIN, ArtifactError, read_card
from walt_pl.runs.checkpoint import Checkpoint, read_state
from walt_pl.untrusted import UntrustedError, read_yaml

START_OVER = "--from_scratch true (make: FRESH=1)"
"""Option that trains a stage from the beginning."""


@dataclass(frozen=True)
class Limits:
    """The limits of a training; None for a limit that is not set."""

    max_steps: int | None
    max_epochs: int | None

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Limits:
        """Return the limits in the options of a trainer, where -1 stands for no limit."""
        steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
        return cls(None if steps in (None, -1) else int(steps), None if epochs in (None, -1) else int(epochs))

    def is_reached(self, steps: int, epochs: int | None) -> bool:
        """Return whether a training of so many steps and epochs is at an end."""
        return (self.max_steps is not None and steps >= self.max_steps) or (
            self.max_epochs is not None and epochs is not None and epochs >= self.max_epochs
        )

    def exceeds(self, other: Limits) -> bool:
        """Return whether a limit is beyond that of another training."""
        pairs = ((self.max_steps, other.max_steps), (self.max_epochs, other.max_epochs))
        return any(theirs is not None and (mine is None or mine > theirs) for mine, theirs in pairs)


@dataclass(frozen=True)
class FinishedTraining:
    """The end of the training of an artifact."""

    artifact: Path
    steps: int
    epochs: int | None
    """None if the card does not have them, as in older artifacts."""
    config: Mapping[str, Any]
    """Resolved configuration of the training."""

    @classmethod
    def read(cls, artifact: Path) -> FinishedTraining:
        """Read card and configuration of an artifact.

        Raises:
            ArtifactError: the folder is not an artifact.
        """
        card = read_card(artifact)
        return cls(artifact, card.get("steps", 0), card.get("epochs"), _read_config(artifact / TRAIN))

    @property
    def limits(self) -> Limits:
        """The limits that this training had."""
        return Limits.of(self.config.get("trainer") or {})

    def is_shorter_than(self, limits: Limits) -> bool:
        """Return whether a command with these limits trains longer.

        The limit that ended the training must be higher. After an early stop, any limit must be higher.
        """
        if limits.is_reached(self.steps, self.epochs):
            return False
        return self.limits.is_reached(self.steps, self.epochs) or limits.exceeds(self.limits)

    def describe(self) -> str:
        """Describe the end of this training, such as "step 640 (trainer.max_steps 640)"."""
        limits = self.limits
        if limits.max_steps is not None and self.steps >= limits.max_steps:
            return f"step {self.steps} (trainer.max_steps {limits.max_steps})"
        if limits.is_reached(self.steps, self.epochs):
            return f"step {self.steps} (trainer.max_epochs {limits.max_epochs})"
        known = [f"trainer.{name} {value}" for name, value in vars(limits).items() if value is not None]
        return f"step {self.steps}" + (f" (before {' and '.join(known)})" if known else "")

    def longer(self) -> str:
        """Return the option that trains longer."""
        limits = self.limits
        by_epochs = limits.max_epochs is not None and (limits.max_steps is None or self.steps < limits.max_steps)
        if by_epochs:
            return f"--trainer.max_epochs N with N above {limits.max_epochs}"
        return f"--trainer.max_steps N with N above {max(self.steps, limits.max_steps or 0)}"

    def until_the_end(self, initialise: bool = True) -> str:
        """Say that the artifact is kept until a new training ends, and how to start from it."""
        start = f" (--init {self.artifact} starts from its weights)" if initialise else ""
        return f"the artifact of step {self.steps} stays until the new end{start}"

    def start_over(self) -> str:
        """Return the options that train a stage from step 0."""
        return f"{START_OVER} to start over, with --init {self.artifact} from its weights"


def _read_config(train_config: Path) -> dict[str, Any]:
    """Read a stored configuration, of which only limits and rates are used.

    Raises:
        ArtifactError: it is no training configuration.
    """
    try:
        config = read_yaml(train_config) or {}
    except UntrustedError as error:
        raise ArtifactError(str(error)) from error
    trainer = (config.get("trainer") or {}) if isinstance(config, dict) else None
    if not isinstance(trainer, dict) or any(type(trainer.get(name)) not in (int, NoneType) for name in ("max_steps", "max_epochs")):
        raise ArtifactError(f"{train_config} is no training configuration with numbers as its limits: export the stage again")
    return dict(config)


def is_past(checkpoint: Checkpoint, limits: Limits) -> bool:
    """Return whether a checkpoint has all steps or epochs of a command."""
    epochs = None
    if limits.max_epochs is not None:
        epochs = read_state(checkpoint.state, mapped=True)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return limits.is_reached(checkpoint.step, epochs)
