"""Read everything that a run holds, for the report. Files that cannot be read become sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walt_pl.evaluation.card import MetricCard, read_cards
from walt_pl.report.training_logs import TrainingLogs, read_training
from walt_pl.runs.card import CARD, ArtifactError, read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.manifest_records import StageRecord
from walt_pl.runs.status import StatusRow, no_run, status_rows
from walt_pl.untrusted import UntrustedError, read_json

MOST_CARD_FILES = 100
"""Files of metric cards that are read: the first ones by name."""
MOST_SAMPLES = 12
"""Moving pictures of `walt sample` that are shown: the last ones by time."""
MAX_SUMMARY_BYTES = 1 << 20
"""Bytes of summary.json of the demo."""


@dataclass
class RunContents:
    """Everything that a run holds."""

    folder: Path
    rows: list[StatusRow]
    records: dict[str, StageRecord]
    trainings: dict[str, TrainingLogs]
    cards: dict[str, dict[str, Any]]
    """Card of each artifact."""
    metric_cards: dict[str, list[MetricCard]]
    """Cards of figures by the name of their file."""
    summary: dict[str, Any]
    """Scores of the demo; empty without one."""
    samples: list[Path]
    bytes_on_disk: dict[str, int]
    """Bytes of each folder of the run, links not followed."""
    problems: list[str] = field(default_factory=list)


def read_run(folder: Path, stages: Sequence[str] = ()) -> RunContents:
    """Return what a run holds. The run may be unfinished; only its manifest must be one.

    Args:
        folder: folder of the run.
        stages: stages of its experiment, which may not have begun.

    Raises:
        ManifestError: there is no run in the folder, or its manifest cannot be read.
    """
    manifest = Manifest.open(folder)
    if not manifest.path.is_file():
        raise no_run(manifest, "report", option="")
    rows = status_rows(folder, stages)
    records = manifest.stages()
    trainings = {row.stage: read_training(folder / "training" / row.stage) for row in rows}
    problems = [f"{stage}: {problem}" for stage, logs in trainings.items() for problem in logs.problems]
    cards = {}
    for row in rows:
        if (manifest.folder(row.stage) / CARD).exists():  # `read_card` looks for a crashed replacement where there is none
            try:
                cards[row.stage] = read_card(manifest.folder(row.stage))
            except (ArtifactError, OSError) as error:
                problems.append(f"{row.stage}: {error}.")
    return RunContents(
        folder,
        rows,
        records,
        trainings,
        cards,
        _metric_cards(folder / "metrics", problems),
        _summary(folder / "demo" / "summary.json", problems),
        _samples(folder),
        _bytes_on_disk(folder),
        problems,
    )


def _metric_cards(folder: Path, problems: list[str]) -> dict[str, list[MetricCard]]:
    found = {}
    for path in sorted(folder.glob("*.json"))[:MOST_CARD_FILES]:
        try:
            found[path.name] = read_cards(path)
        except (UntrustedError, OSError) as error:
            problems.append(f"{error}.")
    return found


def _summary(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        plain = read_json(path, MAX_SUMMARY_BYTES)
    except FileNotFoundError:
        return {}
    except UntrustedError as error:
        problems.append(f"{error}.")
        return {}
    if not isinstance(plain, dict):
        problems.append(f"{path} is no summary of a demo.")
        return {}
    return plain


def _samples(folder: Path) -> list[Path]:
    """Return the moving pictures of the demo, of `walt sample` and of `walt evaluate`."""
    clips = [path for path in folder.glob("samples/*.gif") if re.fullmatch(r"clip(-\d{1,9})?\.gif", path.name)]
    newest = sorted(clips, key=lambda path: path.lstat().st_mtime)[-MOST_SAMPLES:]
    own = [path for path in (folder / "demo" / "samples.gif", folder / "reconstructions.gif") if path.is_file()]
    return [*own, *newest]


def _bytes_on_disk(folder: Path) -> dict[str, int]:
    """Return the bytes of the files below each entry of the run. Links are not followed."""
    sizes: dict[str, int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            top = path.relative_to(folder).parts[0] if Path(place) != folder else "files of its own"
            try:
                sizes[top] = sizes.get(top, 0) + path.lstat().st_size
            except OSError:  # it was removed meanwhile
                continue
    return dict(sorted(sizes.items()))
