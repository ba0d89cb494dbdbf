"""A logger of one CSV file, to which a training that goes on appends."""

import contextlib
import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from walt_pl.files import write_whole
from walt_pl.training.log_folder import starts_of
from walt_pl.training.logger import ResilientLogger


class ResilientCSVLogger(ResilientLogger, CSVLogger):
    """Log to metrics.csv, a row for each call.

    Lightning's logger would remove the rows of an earlier start. Here a training that goes on appends to the file of its first start. Each
    start has a folder for its configuration.

    Args:
        save_dir: folder of the stage's training.
        name: folder of the logs in it.
        goes_on: append to the newest file, if there is one.
    """

    def __init__(self, save_dir: str, name: str, goes_on: bool) -> None:
        super().__init__(save_dir, name=name, flush_logs_every_n_steps=1)
        self._goes_on = goes_on

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Writer of the file."""
        if self._experiment is None:
            own = Path(self.log_dir)
            written = [start for start in starts_of(own.parent) if (start / MetricsFile.NAME_METRICS_FILE).is_file()]
            self._experiment = MetricsFile(str(written[-1] if self._goes_on and written else own))
        return self._experiment

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        super().finalize(status)
        for folder in (self.log_dir, self.root_dir, self.save_dir):  # empty after a start that failed before its first step
            with contextlib.suppress(OSError):
                os.rmdir(folder)


class MetricsFile(ExperimentWriter):
    """Append rows to metrics.csv. The file is rewritten, whole, where a row has a new column.

    A write that fails leaves the rows of before, and the new ones are written with the next one.

    Args:
        log_dir: folder of the file.
    """

    def _check_log_dir_exists(self) -> None:
        """Take the columns of an existing file, which Lightning's writer would remove here."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:  # the process was killed within a row
                write_whole(path, whole)
            self.metrics_keys = next(csv.reader(io.StringIO(whole.decode())), [])

    def save(self) -> None:
        if not self.metrics:
            return
        path, before = Path(self.metrics_file_path), list(self.metrics_keys)
        try:
            if self._record_new_keys() or not path.exists():
                rows = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
                header = dict(zip(self.metrics_keys, self.metrics_keys, strict=True))
                lines: list[Mapping[str, Any]] = [header, *rows, *self.metrics]
                write_whole(path, "".join(map(self._line, lines)).encode())
            else:
                self._append(path, "".join(map(self._line, self.metrics)).encode())
        except OSError:
            self.metrics_keys = before
            raise
        self.metrics = []

    def _line(self, row: Mapping[Any, Any]) -> str:
        line = io.StringIO()
        csv.writer(line).writerow([row.get(key, "") for key in self.metrics_keys])
        return line.getvalue()

    def _append(self, path: Path, lines: bytes) -> None:
        """Append whole lines, or nothing."""
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(lines) < len(lines):
                    raise OSError(f"{path}: no room for a row")
            except OSError:
                file.truncate(size)
                raise
