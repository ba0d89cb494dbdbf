"""Read the folder of a stage's training: starts with their configurations, curves, pictures, incidents and data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from walt_pl.report.blocks import format_number
from walt_pl.report.csv_file import CSV_NAME, read_csv_file
from walt_pl.report.event_file import EventFile, PicturePlace, read_event_file
from walt_pl.runs.data_record import DataRecord
from walt_pl.runs.start_record import StartRecord
from walt_pl.runs.task_record import flatten
from walt_pl.untrusted import UntrustedError, read_json, read_yaml

MOST_STARTS = 200
"""Starts of a training that are read: the last ones."""
MOST_EVENT_FILES = 400
"""Event files of a training that are read: the last ones."""
MOST_INCIDENTS = 50
"""Incidents of a training that are shown: the last ones."""
MAX_INCIDENT_BYTES = 16 << 20
"""Bytes of an incident: it names the files of a batch on every rank."""
LOGS = ("logs", "lightning_logs")
"""Folders of the starts: ours, and Lightning's without a logger."""
T = TypeVar("T")


@dataclass(frozen=True)
class Series:
    """A curve over all starts: a later start takes the place of an earlier one from its first step on."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def finite(self) -> Series:
        """Return the points whose value is a finite number."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])


@dataclass(frozen=True)
class Start:
    """One start of a training."""

    name: str
    config: dict[str, Any] | None
    """Values by dotted key; None where the configuration is missing or cannot be read."""
    data: DataRecord | None
    record: StartRecord | None
    """Its step, machine, code and packages; None for older versions."""
    first_value: int | None = None
    """Step of its first value of the training, after which it has begun at the latest."""
    began: float | None = None
    """Time of its first event in seconds since 1970."""
    ended: float | None = None
    """Time of its last event in seconds since 1970."""


@dataclass(frozen=True)
class Incident:
    """A step that the spike guard skipped or rolled back."""

    step: int
    why: str
    action: str
    loss: str
    gradient_norm: str
    files: tuple[str, ...]
    layers: tuple[str, ...]
    """Layers by gradient norm, the largest first."""


@dataclass
class TrainingLogs:
    """Everything that the training of a stage left beside its checkpoints."""

    starts: list[Start] = field(default_factory=list)
    curves: dict[str, Series] = field(default_factory=dict)
    pictures: dict[str, list[PicturePlace]] = field(default_factory=dict)
    """Places of the pictures by tag, in the order of their steps."""
    incidents: list[Incident] = field(default_factory=list)
    incident_count: int = 0
    problems: list[str] = field(default_factory=list)
    """A sentence for each file that is missing something."""

    @property
    def data(self) -> DataRecord | None:
        """Return the data of the last start that has a record."""
        return next((start.data for start in reversed(self.starts) if start.data is not None), None)

    @property
    def config(self) -> dict[str, Any]:
        """Return the configuration of the last start that has one."""
        return next((start.config for start in reversed(self.starts) if start.config is not None), {})


def read_training(folder: Path) -> TrainingLogs:
    """Return the logs of a training; empty ones where there is no such folder. A damaged file is a problem, never an error."""
    found = TrainingLogs()
    events: list[EventFile] = []
    for start in _start_folders(folder):
        read = [*(read_event_file(path) for path in _event_files(start)), read_csv_file(start / CSV_NAME)]
        for one in read:
            found.problems += [f"{_place(start)}: {problem}" for problem in one.problems]
        times = [time for one in read for time in (one.began, one.ended) if time is not None]
        spans = (min(times), max(times)) if times else (None, None)
        steps = [min(curve.steps) for one in read for tag, curve in one.curves.items() if tag.startswith("train/")]
        found.starts += _read_start(start, found.problems, min(steps, default=None), *spans)
        events += read
    metrics = [read_event_file(path) for name in LOGS for path in _event_files(folder / name / "metrics")]
    found.problems += [f"logs/metrics: {problem}" for one in metrics for problem in one.problems]
    found.curves = merge_curves([*events, *metrics])
    found.pictures = merge_pictures(events)
    _read_incidents(folder / "incidents", found)
    return found


def merge_curves(files: Iterable[EventFile]) -> dict[str, Series]:
    """Return the curves of files in the order of their starts, by tag.

    A training that goes on from a checkpoint repeats some steps. Of each tag, the later file counts alone from its first value on.
    """
    merged: dict[str, Series] = {}
    for file in files:
        for tag, curve in file.curves.items():
            new = Series(np.array(curve.steps, np.int64), np.array(curve.values, np.float64))
            if (old := merged.get(tag)) is not None:
                kept = old.steps < new.steps.min()
                new = Series(np.concatenate([old.steps[kept], new.steps]), np.concatenate([old.values[kept], new.values]))
            merged[tag] = new
    return dict(sorted(merged.items()))


def merge_pictures(files: Iterable[EventFile]) -> dict[str, list[PicturePlace]]:
    """Return the places of pictures by tag in the order of their steps; later files count as in `merge_curves`."""
    merged: dict[str, list[PicturePlace]] = {}
    for file in files:
        for tag in {place.tag: None for place in file.pictures}:
            new = sorted((place for place in file.pictures if place.tag == tag), key=lambda place: place.step)
            merged[tag] = [place for place in merged.get(tag, []) if place.step < new[0].step] + new
    return merged


def compare_starts(starts: Iterable[Start]) -> list[tuple[str, str, Any, Any]]:
    """Return name of the later start, key, former and new value of each key that differs from the start before."""
    changes: list[tuple[str, str, Any, Any]] = []
    before: Mapping[str, Any] | None = None
    for start in starts:
        if start.config is None:
            continue
        if before is not None:
            keys = [key for key in {**before, **start.config} if before.get(key) != start.config.get(key)]
            changes += [(start.name, key, before.get(key, "not set"), start.config.get(key, "not set")) for key in keys]
        before = start.config
    return changes


def _start_folders(folder: Path) -> list[Path]:
    """Return the folders of the starts in their order. Clocks may be set back, so the number counts."""
    found = [path for name in LOGS for path in _listed(folder / name) if re.fullmatch(r"version_\d{1,9}", path.name)]
    return sorted(found, key=lambda path: int(path.name[8:]))[-MOST_STARTS:]


def _event_files(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.name.startswith("events.out.tfevents.")][-MOST_EVENT_FILES:]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it is missing, no folder, or removed meanwhile
        return []


def _place(start: Path) -> str:
    return f"{start.parent.name}/{start.name}"


def _read_start(folder: Path, problems: list[str], first_value: int | None, began: float | None, ended: float | None) -> Iterator[Start]:
    """Yield the start of a folder; several where there was no logger to give each a folder of its own."""

    def read(name: str, reader: Callable[[Path], T]) -> T | None:
        try:
            return reader(folder / name)
        except FileNotFoundError:
            pass  # it was ended before its first step, or an older version wrote none
        except (UntrustedError, TypeError) as error:
            problems.append(f"{_place(folder)}: {error}.")
        return None

    numbers = ["", *sorted((f"_{path.stem[7:]}" for path in folder.glob("config_*.yaml")), key=lambda text: (len(text), text))]
    for number in numbers:
        plain = read(f"config{number}.yaml", lambda path: dict(flatten(config)) if isinstance(config := read_yaml(path), dict) else None)
        data, record = read(f"data{number}.json", DataRecord.read), read(f"start{number}.json", StartRecord.read)
        # Times and values are those of the folder, and count once.
        yield Start(f"{folder.name}{number}", plain, data, record, first_value, began, ended)
        first_value = began = ended = None


def _read_incidents(folder: Path, found: TrainingLogs) -> None:
    files = [path for path in _listed(folder) if re.fullmatch(r"step=\d{8,20}\.json", path.name)]
    found.incident_count = len(files)
    for path in files[-MOST_INCIDENTS:]:
        try:
            found.incidents.append(_incident(read_json(path, MAX_INCIDENT_BYTES)))
        except (UntrustedError, FileNotFoundError) as error:
            found.problems.append(f"{error}.")
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            found.problems.append(f"{path.name} is no incident of the spike guard ({error!r}).")


def _incident(plain: Any) -> Incident:
    """Return an incident of plain values; every value becomes text."""
    paths = [str(file["path"]) for rank in plain["ranks"] for file in rank["files"]]
    layers = [f"{layer} {format_number(norm)}" for layer, norm in plain.get("gradient norm by layer", {}).items()]
    why = "; ".join(str(reason) for reason in plain["why"])
    loss, norm = format_number(plain.get("loss")), format_number(plain.get("gradient norm"))
    return Incident(int(plain["step"]), why, str(plain["action"]), loss, norm, tuple(paths), tuple(layers[:3]))
