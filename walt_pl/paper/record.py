"""Results of the paper's rows: one JSON file for each row and seed, with its machine, commit, time and memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from walt_pl.files import write_whole
from walt_pl.paper.figure import Figure
from walt_pl.paper.row import Row
from walt_pl.plain_records import build_record, check_range, check_sha256, check_time
from walt_pl.untrusted import UntrustedError, read_json

FORMAT = 1
MAX_RECORD_BYTES = 1 << 20
RESULTS = "results"
"""Folder of the files, in the folder of the page."""
CODE = ("walt_pl", "stages", "datamodules", "experiments", "requirements.txt")
"""Paths whose changes make a commit dirty. Results are none of them: a row must not make the next one dirty."""


class RecordError(ValueError):
    """A file of results cannot be read. The message is one sentence that ends with what to do."""


@dataclass(frozen=True)
class Record:
    """Result of one row with one seed."""

    format: int
    row: str
    table: str
    seed: int
    short: bool
    """Fewer steps and cases were taken (`make paper SHORT=1`)."""
    figures: dict[str, Figure]
    steps: dict[str, int]
    """Optimiser steps by stage that the row trained."""
    seconds_a_step: dict[str, float]
    """Seconds of an optimiser step by stage that the row trained, validation included."""
    minutes: dict[str, float]
    """Minutes by the clock: training, of all stages of the row, and measuring."""
    peak_gib: float
    """Largest resident memory of a process of the row, GiB."""
    machine: str
    device: str
    threads: int
    """Threads of each run."""
    jobs: int
    """Runs side by side."""
    commit: str | None
    """Commit of the code; None outside of git."""
    dirty: bool
    """The code differed from that commit."""
    date: str
    """Time of the end, UTC."""
    stages: dict[str, str]
    """Hash of the weights by stage, of adopted ones, too."""
    picture: bool
    """There is a picture of this row."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}, wanted {FORMAT}")
        check_time(self.date, "date")
        for name, values in (("steps", self.steps), ("seconds_a_step", self.seconds_a_step), ("minutes", self.minutes)):
            for key, value in values.items():
                check_range(value, f"{name}: {key}", 1e12)
        check_range(self.peak_gib, "peak_gib", 1e6)
        for stage, sha256 in self.stages.items():
            check_sha256(sha256, f"stages: {stage}")


def record_path(out: Path, row: Row, seed: int) -> Path:
    """Return the path of a row's file for a seed, below the folder of the page."""
    return out / RESULTS / row.folder / f"{row.name}-s{seed}.json"


def picture_path(row: Row) -> Path:
    """Return the path of a row's picture, relative to the folder of the page."""
    return Path(RESULTS) / row.folder / f"{row.name}.png"


def write_record(out: Path, row: Row, record: Record) -> None:
    """Write the file of a row and a seed."""
    path = record_path(out, row, record.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = dataclasses.asdict(record)
    plain["figures"] = {name: {key: _shorten(value) for key, value in figure.items()} for name, figure in plain["figures"].items()}
    plain["seconds_a_step"] = {stage: _shorten(value) for stage, value in record.seconds_a_step.items()}
    write_whole(path, (json.dumps(plain, indent=1) + "\n").encode())


def read_record(out: Path, row: Row, seed: int) -> Record | None:
    """Return the result of a row and a seed; None if there is none.

    Raises:
        RecordError: the file is damaged, or of another row.
    """
    path = record_path(out, row, seed)
    if not os.path.lexists(path):
        return None
    try:
        record = build_record(Record, read_json(path, MAX_RECORD_BYTES), str(path))
    except UntrustedError as error:
        raise RecordError(f"{error}: restore the file, or remove it, and make paper measures its row again") from None
    if (record.row, record.table, record.seed) != (row.name, row.table, seed):
        told = f"{record.table} {record.row} of seed {record.seed}"
        raise RecordError(f"{path} is the result of {told}: move it away, and make paper measures its row again")
    return record


def read_records(out: Path, rows: Sequence[Row]) -> dict[tuple[str, int], Record]:
    """Return the results of all rows by name and seed.

    Raises:
        RecordError: a file is damaged, or of another row.
    """
    found = {(row.name, seed): read_record(out, row, seed) for row in rows for seed in row.seeds}
    return {key: record for key, record in found.items() if record is not None}


def of_row(records: Mapping[tuple[str, int], Record], row: Row) -> list[Record]:
    """Return the results of a row in the order of its seeds."""
    return [records[row.name, seed] for seed in row.seeds if (row.name, seed) in records]


def values_of(figure: str, records: Sequence[Record]) -> list[float]:
    """Return the values of a figure in the order of the results."""
    return [record.figures[figure].value for record in records if figure in record.figures]


def code_is_changed() -> bool:
    """Return whether the code or the experiments differ from the commit of this checkout; false outside of git."""
    command = ["git", "diff", "--quiet", "HEAD", "--", *CODE]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 1


def _shorten(value: float) -> float:
    """Return a number with six digits, so that files show what was measured and no more."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
