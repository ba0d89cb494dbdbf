"""The record of a start of a training: its first step, machine, code and packages."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from walt_pl.files import write_whole
from walt_pl.lock import now
from walt_pl.plain_records import build_record, check_range, check_time
from walt_pl.runs.stop_record import MAX_STEPS
from walt_pl.untrusted import read_json

MAX_START_BYTES = 1 << 20
"""Bytes of start.json. It has about 1 KB."""


@dataclass(frozen=True)
class StartRecord:
    """A start of a training."""

    step: int
    """Optimiser steps that were done before it."""
    machine: str
    """Processor or GPU, and the number of processes."""
    code: str | None
    """Commit of the checkout; None outside of one."""
    packages: dict[str, str] = field(default_factory=dict)
    """Version by name."""
    time: str = field(default_factory=now)
    """Time of the start, UTC."""

    def __post_init__(self) -> None:
        check_range(self.step, "step", MAX_STEPS)
        check_time(self.time, "time")

    @classmethod
    def read(cls, path: Path) -> StartRecord:
        """Read a record, which a stranger may have written.

        Raises:
            FileNotFoundError: there is no such file.
            UntrustedError: it is no plain file of limited size, or an entry has another type or range.
        """
        return build_record(cls, read_json(path, MAX_START_BYTES), str(path))

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())
