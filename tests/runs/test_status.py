"""Every state that `status` shows, with its numbers and the command to type."""

import dataclasses
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.runs.test_manifest import run_dir, tiny_sections, train
from walt_pl.cli.main import main
from walt_pl.files import write_whole
from walt_pl.lock import Holder
from walt_pl.runs.manifest import Manifest, TrainingRecord
from walt_pl.runs.progress import CHECKPOINT_CARD, TrainingProgress
from walt_pl.runs.status import StatusRow, status_rows
from walt_pl.runs.stop_record import StopRecord

__all__ = ["run_dir", "tiny_sections"]  # fixtures
TYPED = "python -m walt_pl fit --config experiments/shapes/base.yaml --model.optimizer.lr 0.001"


def start(run: Path, holder: Holder, *checkpoints: int, progress: TrainingProgress | None = None) -> Path:
    """Let a process train the base of a run that has an autoencoder. Return the folder of its training."""
    chain = train(run, "vae")
    chain.start("base", chain.check_parents("base"))
    with chain._edit() as stages:
        stages["base"] = dataclasses.replace(stages["base"], training=TrainingRecord(holder, chain.check_parents("base")))
    folder = run / "training" / "base"
    for step in checkpoints:
        (folder / "checkpoints" / f"step={step:08d}").mkdir(parents=True)
        write_whole(folder / "checkpoints" / f"step={step:08d}" / CHECKPOINT_CARD, b"{}")
    if progress is not None:
        progress.write(folder)
    return folder


def base(run: Path) -> StatusRow:
    (row,) = [row for row in status_rows(run) if row.stage == "base"]
    return row


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def progress(run: Path, **more: str) -> TrainingProgress:
    return TrainingProgress(50, 200, 2.5, str(run / "training" / "base" / "checkpoints"), TYPED, **more)


def test_status_of_a_running_training_has_process_host_step_speed_and_time_left(run_dir: Path) -> None:
    holder = Holder.here()
    start(run_dir, holder, 40, progress=progress(run_dir))
    row = base(run_dir)
    assert (row.state, row.command, row.step, row.total) == ("running", "", 50, 200)
    assert (row.process, row.host, row.steps_per_second, row.seconds_left) == (os.getpid(), holder.host, 2.5, 60.0)


def test_status_of_a_training_before_its_first_step_is_running_without_a_speed(run_dir: Path) -> None:
    """The progress of an earlier start does not count."""
    start(run_dir, Holder.here(), 40, progress=progress(run_dir, time=ago(100)))
    row = base(run_dir)
    assert (row.state, row.step, row.steps_per_second, row.seconds_left) == ("running", 40, None, None)


def test_status_of_a_training_under_a_clock_that_was_set_back_shows_its_progress(run_dir: Path) -> None:
    holder = Holder.here()
    own = dataclasses.replace(progress(run_dir, time=ago(3600)), process=holder.pid, born=holder.born)
    start(run_dir, holder, 40, progress=own)
    assert (base(run_dir).step, base(run_dir).steps_per_second) == (50, 2.5)
    dataclasses.replace(own, born=1, time=ago(-3600)).write(run_dir / "training" / "base")  # a reused process id
    assert (base(run_dir).step, base(run_dir).steps_per_second) == (40, None)


def test_status_of_a_stopped_training_has_its_checkpoint_and_the_command_that_was_typed(run_dir: Path) -> None:
    start(run_dir, Holder.here(), 20, 40, progress=progress(run_dir))
    Manifest.open(run_dir).stop("base", StopRecord(40, 200))
    row = base(run_dir)
    assert (row.state, row.step, row.total, row.command, row.process) == ("stopped", 40, 200, TYPED, None)


def test_status_of_a_crashed_training_is_stopped_at_its_newest_whole_checkpoint(run_dir: Path) -> None:
    (ended := subprocess.Popen(["true"])).wait()
    folder = start(run_dir, dataclasses.replace(Holder.here(), pid=ended.pid, born=1), 20, 40, 60, progress=progress(run_dir))
    (folder / "checkpoints" / "step=00000060" / CHECKPOINT_CARD).unlink()
    assert (base(run_dir).state, base(run_dir).step, base(run_dir).command) == ("stopped", 40, TYPED)


@pytest.mark.parametrize(("silence", "state"), [(60, "running"), (3600, "stopped")])
def test_status_of_a_training_on_another_host_goes_by_its_last_progress(run_dir: Path, silence: float, state: str) -> None:
    holder = Holder("another-host", 1, None, ago(7200))
    start(run_dir, holder, 40, progress=progress(run_dir, time=ago(silence)))
    assert (base(run_dir).state, base(run_dir).step) == (state, 50 if state == "running" else 40)


def test_status_command_lists_done_stale_missing_and_stages_not_started(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(run_dir, "vae", "base", "sr1")
    train(run_dir, "vae")
    shutil.rmtree(run_dir / "sr1")
    main(["status", "--run", "runs/shapes", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["stage"], row["state"], row["command"]) for row in rows] == [
        ("vae", "done", ""),
        ("base", "stale", "make train-base EXP=shapes"),
        ("sr1", "missing", "python -m walt_pl fit --config experiments/shapes/sr1.yaml"),
        ("sr2", "not started", "python -m walt_pl fit --config experiments/shapes/sr2.yaml"),
    ]
    main(["status", "--run", "runs/shapes"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("Next, in this order:") + 1 :] == [row["command"] for row in rows if row["command"]]
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [(row[0], row[1]) for row in table] == [(row["stage"], row["state"]) for row in rows]


def test_status_command_shows_a_running_training_in_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(run_dir, Holder.here(), 40, progress=progress(run_dir))
    main(["status", "--run", "runs/shapes"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ base")]
    assert [cell.strip() for cell in line.strip("│").split("│")][1:5] == [
        "running at step 50 of 200",
        "2.5",
        "0:01:00",
        f"{os.getpid()} on {Holder.here().host}",
    ]


def test_status_command_of_an_experiment_that_was_never_trained_lists_its_stages(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["status", "--json"])
    assert {row["stage"]: row["state"] for row in json.loads(capsys.readouterr().out)} == dict.fromkeys(
        ["vae", "base", "sr1", "sr2"], "not started"
    )
    assert not run_dir.exists()
