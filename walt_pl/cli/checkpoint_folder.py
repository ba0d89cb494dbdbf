"""Check that a folder of checkpoints belongs to the stage that is about to be trained, since training removes checkpoints from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from walt_pl.runs.checkpoint import Checkpoint, IncompleteCheckpoint, read_state
from walt_pl.training.callbacks.export import DESCRIPTION
from walt_pl.untrusted import UntrustedError, parse_yaml


def check_own_folder(folder: Path, work: Path, run: Path, stage: str) -> None:
    """Refuse a folder outside of the run with checkpoints of another training. The newest whole one is looked at.

    Args:
        folder: folder of the checkpoints.
        work: folder of the training. Its checkpoints are its own, also where that folder is a link.
        run: folder of the run, as typed.
        stage: name of the stage.

    Raises:
        ValueError: the checkpoint is of another stage or run, or does not say of which.
    """
    if folder.absolute().is_relative_to(work.absolute()) or folder.resolve().is_relative_to(work.resolve()):
        return
    for checkpoint in reversed(Checkpoint.all(folder)):
        try:
            described: Any = read_state(checkpoint.state, mapped=True).get(DESCRIPTION)
        except IncompleteCheckpoint:
            continue  # damaged: the start names it
        if not _is_own(described, run, stage, str(checkpoint.path)):
            raise ValueError(
                f'checkpoint.dirpath {folder}: {checkpoint.path.name} is not of stage "{stage}" of {run}, and training would remove it; '
                f"name another folder. If it is of this run under its former name, move the folder to {work / 'checkpoints'}"
            )
        return


def _is_own(described: Any, run: Path, stage: str, where: str) -> bool:
    """Return whether a checkpoint's stored configuration names this run, by its place or its name, and this stage."""
    try:
        config: Any = parse_yaml(described["train_config"], where) if isinstance(described, Mapping) else None
        stored, name = Path(config["run"]), str(config["stage"])
    except (UntrustedError, KeyError, TypeError):
        return False
    names = {run.name, run.resolve().name}
    return name == stage and (stored.resolve() == run.resolve() or stored.name in names)
