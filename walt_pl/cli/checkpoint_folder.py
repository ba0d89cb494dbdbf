"""Check that a folder of checkpoints belongs to the stage that is about to be trained, since training removes checkpoints from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from walt_pl.runs.checkpoint import Checkpoint, CheckpointError, read_state
from walt_pl.training.callbacks.export import DESCRIPTION
from walt_pl.untrusted import UntrustedError, parse_yaml


def check_own_folder(folder: Path, work: Path, run: Path, stage: str) -> None:
    """Refuse a folder with checkpoints of another training. Only a folder that a person has named can be one.

    Args:
        folder: folder of the checkpoints.
        work: folder of the training. What lies in it is its own.
        run: folder of the run. Only its name is compared, since runs are moved.
        stage: name of the stage.

    Raises:
        ValueError: a checkpoint says that it is of another run or stage, or does not say of which.
    """
    if folder.resolve().is_relative_to(work.resolve()):
        return
    for checkpoint in Checkpoint.all(folder):
        found = _training_of(checkpoint)
        if found != (run.resolve().name, stage):
            whose = 'of stage "{1}" of a run {0}'.format(*found) if found else "of a training that it does not name"
            raise ValueError(
                f"checkpoint.dirpath {folder}: {checkpoint.path.name} is {whose}, and training would remove it; name another folder"
            )


def _training_of(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """Return the names of the run and the stage of a checkpoint, None if they are not known."""
    try:
        described: Any = read_state(checkpoint.state, mapped=True).get(DESCRIPTION)
        config: Any = parse_yaml(described["train_config"], str(checkpoint.path)) if isinstance(described, Mapping) else None
        return Path(config["run"]).name, str(config["stage"])
    except (CheckpointError, UntrustedError, KeyError, TypeError):
        return None
