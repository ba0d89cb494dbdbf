"""Inspect a run: the state of its stages, and whether every byte is as its stage wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from walt_pl.runs.experiment_files import EXPERIMENTS
from walt_pl.runs.living_run import read_settled
from walt_pl.runs.manifest import RUNS, Manifest, has_card, stale_reason
from walt_pl.runs.manifest_records import StageRecord, TrainingRecord
from walt_pl.runs.progress import TrainingProgress, newest_checkpoint_step, seconds_since
from walt_pl.runs.stage_names import ManifestError, in_order, kind_of

State = Literal["running", "stopped", "done", "stale", "missing", "not started"]
COLOURS: dict[State, str] = {
    "running": "cyan",
    "stopped": "magenta",
    "done": "green",
    "stale": "yellow",
    "missing": "red",
    "not started": "dim",
}
SILENCE = 600.0
"""Seconds without progress after which a training on another host counts as stopped. Its process cannot be asked from here."""


@dataclass(frozen=True)
class StatusRow:
    """One stage in the table of `status`."""

    stage: str
    kind: str
    state: State
    """running, stopped (resumes at `step`), done, stale (a parent has changed), missing (its artifact was removed) or not started."""
    command: str = ""
    """Command to type next; empty if nothing is to be done, or if no configuration of the stage is known."""
    step: int | None = None
    """Step of a running training, or of the checkpoint that a stopped one resumes from."""
    total: int | None = None
    """Steps of the whole training, if they are known."""
    steps_per_second: float | None = None
    seconds_left: float | None = None
    process: int | None = None
    """Process id of a running training."""
    host: str | None = None
    sha256: str | None = None
    """Hash of the weights; None if there are none."""
    parents: dict[str, str] = field(default_factory=dict)
    time: str | None = None
    """Time when the stage was finished, or since when it is in training."""


def status_rows(run_dir: str | Path, stages: Sequence[str] = ()) -> list[StatusRow]:
    """Return the state of the stages of a run, in the order of the pipeline. Nothing is written, and no weights are read.

    Args:
        run_dir: folder of the run.
        stages: stages to list beside those of the manifest.

    Raises:
        ManifestError: the manifest cannot be read, or there is none and no stages are given.
    """
    manifest = Manifest.open(run_dir)
    found = manifest.stages()
    if not found and not stages:
        raise no_run(manifest, "status")
    return [_row(manifest, name, found) for name in in_order(list({*found, *stages}))]


def _row(manifest: Manifest, name: str, found: Mapping[str, StageRecord]) -> StatusRow:
    record = found.get(name)
    if record is None:
        return StatusRow(name, kind_of(name), "not started", _command(manifest, name))
    done = record.artifact if record.artifact is not None and has_card(manifest.run_dir / record.artifact.path) else None
    if record.training is not None:
        row = _training_row(record, record.training, manifest.run_dir / "training" / name)
    else:
        state: State = "missing" if done is None else "stale" if stale_reason(name, found) else "done"
        row = StatusRow(name, record.kind, state, time=done.finished if done else None)
    command = "" if row.state in ("done", "running") else row.command or _command(manifest, name)
    sha256, parents = (done.sha256, done.parents) if done else (None, {})
    return replace(row, command=command, sha256=sha256, parents=parents)


def _training_row(record: StageRecord, training: TrainingRecord, folder: Path) -> StatusRow:
    """Return the row of a training that has begun and not finished."""
    holder, stop = training.holder, training.stop
    progress, saved = _progress(folder)
    total = stop.max_steps if stop else progress.total if progress else None
    fresh = progress if progress and progress.is_of(holder) else None  # else it is of an earlier start
    command = fresh.command if fresh else ""
    row = StatusRow(record.name, record.kind, "stopped", command, step=saved, total=total, time=holder.time)
    if stop is not None:
        return row
    alive = holder.alive()
    if alive is False or (alive is None and seconds_since(fresh.time if fresh else holder.time) > SILENCE):
        return row
    row = replace(row, state="running", process=holder.pid, host=holder.host)
    if fresh is None:
        return row
    return replace(row, step=fresh.step, steps_per_second=fresh.steps_per_second, seconds_left=fresh.seconds_left)


def _progress(training: Path) -> tuple[TrainingProgress | None, int]:
    """Return the last record of a training, and the step of its newest checkpoint (0 without one)."""
    progress = TrainingProgress.read(training)
    folders = (Path(progress.checkpoints),) if progress else ()
    saved = [newest_checkpoint_step(folder) for folder in (*folders, training / "checkpoints")]  # a run may have been moved
    return progress, next((step for step in saved if step is not None), 0)


def _command(manifest: Manifest, stage: str) -> str:
    command = manifest.command(stage)
    return "" if str(EXPERIMENTS / "EXP") in command else command  # the experiment is not known: it could not be pasted


def render_status(run_dir: str | Path, rows: Sequence[StatusRow]) -> Table:
    """Render rows as a table for the terminal. Columns without content are left out."""
    cells: dict[str, list[str] | list[Text]] = {
        "stage": [row.stage for row in rows],
        "state": [Text(_describe_state(row), COLOURS[row.state]) for row in rows],
        "steps a second": [f"{row.steps_per_second:.3g}" if row.steps_per_second else "" for row in rows],
        "time left": [str(timedelta(seconds=round(row.seconds_left))) if row.seconds_left is not None else "" for row in rows],
        "process": [f"{row.process} on {row.host}" if row.process else "" for row in rows],
        "weights": [(row.sha256 or "")[:12] for row in rows],
        "trained from": [", ".join(f"{parent} {sha256[:12]}" for parent, sha256 in row.parents.items()) for row in rows],
        "time (UTC)": [(row.time or "")[:19] for row in rows],
    }
    shown = {title: column for title, column in cells.items() if any(column)}
    table = Table(*shown, title=Text(str(run_dir)), title_justify="left")
    for line in zip(*shown.values(), strict=True):
        table.add_row(*line)
    return table


def _describe_state(row: StatusRow) -> str:
    if row.step is None:
        return row.state
    return f"{row.state} at step {row.step}{f' of {row.total}' if row.total else ''}"


def verify_run(run_dir: str | Path) -> list[str]:
    """Read every byte of every artifact of a run, and check the parents of each stage.

    Returns:
        One sentence a problem; empty if there is none.

    Raises:
        ManifestError: there is no run in the folder.
    """
    manifest = Manifest.open(run_dir)
    if not manifest.path.is_file():
        raise no_run(manifest, "verify")
    return read_settled(manifest, lambda: _problems(manifest), failed=bool)


def _problems(manifest: Manifest) -> list[str]:
    stages = manifest.stages()
    problems: list[str] = []
    for name, stage in stages.items():
        if stage.artifact is None:
            continue
        if not manifest.has_artifact(stage.artifact):
            problems.append(f'stage "{name}" has no artifact in {manifest.run_dir / stage.artifact.path}: {manifest.advice(name)}')
            continue
        changed, _ = manifest.compare(stage.artifact, fresh=True)
        problems += [f'stage "{name}": {problem}: restore the file, or {manifest.advice(name, from_scratch=True)}' for problem in changed]
        reason = stale_reason(name, stages)
        if reason:
            problems.append(f'stage "{name}" is stale because {reason}: {manifest.advice(name)}')
    return problems


def no_run(manifest: Manifest, command: str, option: str = "--run ") -> ManifestError:
    """Return the error for a folder without a run. It names the runs that exist, and the command to type.

    Args:
        manifest: that of the folder.
        command: command that wants a run.
        option: words before the folder on its command line; empty where the folder has no option.
    """
    runs = sorted({str(path.parent) for folder in (manifest.run_dir.parent, RUNS) for path in folder.glob("*/manifest.json")})
    return ManifestError(
        f"{manifest.run_dir} is no run, it has no manifest.json; there are: {', '.join(runs) or 'none'}. "
        f"Type: python -m walt_pl {command} {option}RUN (make {command} EXP=shapes)"
    )
