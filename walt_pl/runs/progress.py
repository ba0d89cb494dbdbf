"""Progress of a training: `training/STAGE/progress.json`, written beside the checkpoints by rank zero and read by `status`.

Nothing of torch is imported here: `status` shall start at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from walt_pl.files import write_whole
from walt_pl.lock import MAX_PID, Holder, now
from walt_pl.plain_records import build_record, check_range, check_time
from walt_pl.runs.stop_record import MAX_STEPS
from walt_pl.terminal_text import CONTROL
from walt_pl.untrusted import read_json

FILE = "progress.json"
CHECKPOINT_CARD = "checkpoint.json"
"""Written last into a checkpoint, see walt_pl/runs/checkpoint.py."""

MAX_PROGRESS_BYTES = 64 << 10
"""Bytes of progress.json. It has the command of the training."""
MAX_SPEED = 1e9
"""Most steps a second."""
MAX_SECONDS = 3e10
"""Longest time left that is shown: a thousand years."""


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
    process: int | None = None
    """Process that trains; None in files of older versions."""
    born: int | None = None
    """Start of the process, see walt_pl.lock.Holder."""

    def __post_init__(self) -> None:
        check_range(self.step, "step", MAX_STEPS)
        check_range(self.total, "total", MAX_STEPS, -1)
        check_range(self.steps_per_second, "steps_per_second", MAX_SPEED)
        check_time(self.time, "time")
        check_range(self.process, "process", MAX_PID, 1)
        if self.command and not is_fit_command(self.command):
            raise ValueError("command is no command of fit")

    @classmethod
    def read(cls, folder: Path) -> TrainingProgress | None:
        """Return the last record in the folder of a training; None if there is none that can be read."""
        try:
            return build_record(cls, read_json(folder / FILE, MAX_PROGRESS_BYTES), str(folder / FILE))
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> None:
        """Write the record into the folder of a training.

        Raises:
            OSError: the file system is full or cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        command = "" if CONTROL.search(self.command) else self.command  # a line end in an option; `read` refuses it
        write_whole(folder / FILE, (json.dumps({**dataclasses.asdict(self), "command": command}) + "\n").encode())

    def is_of(self, holder: Holder) -> bool:
        """Return whether a process wrote this record. Times are compared only for older versions: clocks may be set back."""
        return self.time >= holder.time if self.process is None else (self.process, self.born) == (holder.pid, holder.born)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step; None for a training without an end."""
        if self.total is None or not self.steps_per_second:
            return None
        return min(max(0, self.total - self.step) / self.steps_per_second, MAX_SECONDS)


def newest_checkpoint_step(folder: Path) -> int | None:
    """Return the step of the newest finished checkpoint of a folder; None if there is none. No weights are read."""
    try:
        found = list(folder.iterdir()) if folder.is_dir() else []
    except OSError:  # no rights, or a name that is too long
        return None
    steps = [int(path.name[5:]) for path in found if re.fullmatch(r"step=\d{8,}", path.name) and (path / CHECKPOINT_CARD).is_file()]
    return max(steps, default=None)


def is_fit_command(command: str) -> bool:
    """Return whether a command starts `fit` of this program and nothing else: every word is quoted as a shell wants it."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return shlex.join(words) == command and words[:4] == ["python", "-m", "walt_pl", "fit"]


def seconds_since(time: str) -> float:
    """Return the seconds since a time as `now` gives it."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
