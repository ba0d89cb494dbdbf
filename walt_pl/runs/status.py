"""Inspect a run: the state of its stages, and whether every byte is as its stage wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from walt_pl.runs.manifest import RUNS, Manifest, StageRecord, State, stale_reason
from walt_pl.runs.stage_names import ManifestError, in_order, kind_of
from walt_pl.runs.stop_record import StopRecord


@dataclass(frozen=True)
class StatusRow:
    """One stage in the table of `status`."""

    stage: str
    kind: str
    state: State
    sha256: str | None
    """Hash of the weights; None if there are none."""
    parents: dict[str, str]
    time: str | None
    """Time when the stage was finished, or since when it is in training."""
    command: str
    """Command to type next; empty if nothing is to be done."""
    stop: StopRecord | None = None
    """Step at which the training stopped; None in all states but "stopped"."""


def status_rows(run_dir: str | Path, stages: Sequence[str] = ("vae", "base")) -> list[StatusRow]:
    """Return the state of the stages of a run, in the order of the pipeline, without reading weights.

    Args:
        run_dir: folder of the run.
        stages: stages to list beside those of the manifest if they do not exist yet. Any base of the manifest counts for "base".
    """
    manifest = Manifest.open(run_dir)
    found = manifest.stages()
    rows = []
    kinds = {kind_of(name) for name in found}
    for name in in_order([*found, *(name for name in stages if name not in found and (kind_of(name) != "base" or "base" not in kinds))]):
        stage = found.get(name, StageRecord(name, kind_of(name)))
        state = manifest.state_in(name, found)
        done = stage.artifact if state != "missing" else None
        when = stage.training.holder.time if stage.training else done.finished if done else None
        command = "" if state == "done" else manifest.command(name)
        sha256, parents = (done.sha256, done.parents) if done else (None, {})
        stop = stage.training.stop if stage.training else None
        rows.append(StatusRow(name, stage.kind, state, sha256, parents, when, command, stop))
    return rows


def render_status(run_dir: str | Path, stages: Sequence[str] = ("vae", "base")) -> Table:
    """Render `status_rows` as a table for the terminal."""
    colours = {"missing": "dim", "training": "cyan", "stopped": "yellow", "done": "green", "stale": "yellow"}
    table = Table(title=f"{run_dir}", title_justify="left")
    for column in ("stage", "kind", "state", "weights", "trained from", "time (UTC)", "next"):
        table.add_column(column)
    for row in status_rows(run_dir, stages):
        parents = ", ".join(f"{parent} {sha256[:12]}" for parent, sha256 in row.parents.items())
        state = f"[{colours[row.state]}]{row.stop or row.state}[/]"
        table.add_row(row.stage, row.kind, state, (row.sha256 or "")[:12], parents, (row.time or "")[:19], row.command)
    return table


def verify_run(run_dir: str | Path) -> list[str]:
    """Read every byte of every artifact of a run, and check the parents of each stage.

    Returns:
        One sentence a problem; empty if there is none.

    Raises:
        ManifestError: there is no run in the folder.
    """
    manifest = Manifest.open(run_dir)
    if not manifest.path.is_file():
        runs = sorted({str(path.parent) for folder in (manifest.run_dir.parent, RUNS) for path in folder.glob("*/manifest.json")})
        raise ManifestError(
            f"{manifest.run_dir} is no run, it has no manifest.json; there are: {', '.join(runs) or 'none'}. "
            "Type: python -m walt_pl verify --run RUN (make verify EXP=shapes)"
        )
    stages = manifest.stages()
    problems: list[str] = []
    for name, stage in stages.items():
        if stage.artifact is None:
            continue
        if not manifest.has_artifact(stage.artifact):
            problems.append(f'stage "{name}" has no artifact in {manifest.run_dir / stage.artifact.path}: {manifest.command(name)}')
            continue
        changed, _ = manifest.compare(stage.artifact, fresh=True)
        problems += [f'stage "{name}": {problem}: restore the file, or {manifest.command(name, from_scratch=True)}' for problem in changed]
        reason = stale_reason(name, stages)
        if reason:
            problems.append(f'stage "{name}" is stale because {reason}: {manifest.command(name)}')
    return problems
