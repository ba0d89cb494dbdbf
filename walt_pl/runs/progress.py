"""Progress of a training: `training/STAGE/progress.json`, written beside the checkpoints by rank zero and read by `status`.

Nothing of torch is imported here: `status` shall start at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from walt_pl.files import write_whole
from walt_pl.lock import now

FILE = "progress.json"
CHECKPOINT_CARD = "checkpoint.json"
"""Written last into a checkpoint, see walt_pl/runs/checkpoint.py."""


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training at one moment."""

    step: int
    """Optimiser steps done."""
    total: int | None
    """Optimiser steps of the whole training; None for a training without an end."""
    steps_per_second: float
    """Mean since this start of the training, validation included."""
    checkpoints: str
    """Folder of the checkpoints, absolute. Another one than that of the run can be chosen with --checkpoint.dirpath."""
    command: str = ""
    """Command that goes on with this training after a stop, with all options that were typed; empty if it is not known."""
    time: str = dataclasses.field(default_factory=now)
    """Time of this record, UTC."""

    @classmethod
    def read(cls, folder: Path) -> TrainingProgress | None:
        """Return the last record in the folder of a training; None if there is none that can be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write the record into the folder of a training.

        Raises:
            OSError: the file system is full or cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, (json.dumps(dataclasses.asdict(self)) + "\n").encode())

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step; None for a training without an end."""
        return None if self.total is None or not self.steps_per_second else max(0, self.total - self.step) / self.steps_per_second


def newest_checkpoint_step(folder: Path) -> int | None:
    """Return the step of the newest finished checkpoint of a folder; None if there is none. No weights are read."""
    found = folder.iterdir() if folder.is_dir() else ()
    steps = [int(path.name[5:]) for path in found if re.fullmatch(r"step=\d{8,}", path.name) and (path / CHECKPOINT_CARD).is_file()]
    return max(steps, default=None)


def seconds_since(time: str) -> float:
    """Return the seconds since a time as `now` gives it."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
