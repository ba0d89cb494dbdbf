"""launch/slurm.sbatch on Debian's SLURM, with two nodes of one process each."""

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.conftest import LENGTH, START, assert_same_bytes, make_slow, newest_step
from tests.cluster.machines import Pair, find_missing, wait_until
from tests.cluster.slurm import SLURM_TOOLS, Slurm, start_slurm
from tests.helpers.environment import ROOT
from tests.helpers.training import ADAMW, options

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(bool(find_missing(SLURM_TOOLS)), reason=find_missing(SLURM_TOOLS)),
]
SCRIPT = str(ROOT / "launch" / "slurm.sbatch")
HOUR = ["--time=60", "--signal=USR1@120"]
NODES = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]


@pytest.fixture
def slurm(pair: Pair, tmp_path: Path) -> Slurm:
    return start_slurm(pair, tmp_path / "slurm")


def submit(slurm: Slurm, run: Path, index: Path, *more: str, limits: Sequence[str] = HOUR) -> tuple[str, Path]:
    """Submit the training of the base, and return the number of the job and the file of its output."""
    variables = {"EXP": "shapes", "STAGE": "base", "STRATEGY": "zero2", "RUN": str(run), "OMP_NUM_THREADS": "1"}
    log = run.parent / "job.out"
    words = [*NODES, *limits, f"--output={log}", SCRIPT, *options("base", index, *ADAMW, *more)]
    return slurm.submit(*words, environment=variables), log


def test_slurm_job_out_of_time_is_requeued_and_ends_with_the_bytes_of_an_undisturbed_training(
    slurm: Slurm, run: Path, whole: Path, painted: Path, tmp_path: Path
) -> None:
    words = [*LENGTH, "--checkpoint.every_n_train_steps", "4", "--data.num_workers", "1"]
    number, log = submit(slurm, run, painted, *words, *make_slow(tmp_path / "happened"))
    wait_until(lambda: newest_step(run) >= 4, START, "a checkpoint of step 4", lambda: log.read_text())
    slurm.end_soon(number)
    wait_until(lambda: "into the queue again" in log.read_text(), 240, "the end of the first start", lambda: log.read_text())
    (tmp_path / "happened").touch()
    slurm.ask("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    job = slurm.wait(number, 240 + START, log)
    said = log.read_text()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), said
    (stop,) = re.findall(r"stopped by SIGUSR1 after step (\d+), everything is in", said)
    assert f"slurm.sbatch: out of time after step {stop} (step 0 before); putting job {number} into the queue again" in said
    assert (
        f"start 2 on walt-[1-2], after step {stop}" in said
        and f"going on from {run}/training/base/checkpoints/step={int(stop):08d}" in said
    )
    assert said.count("the stage is done") == 1
    assert_same_bytes(run, whole)


def test_slurm_job_with_a_killed_rank_fails_and_a_cancelled_one_saves(slurm: Slurm, run: Path, painted: Path, tmp_path: Path) -> None:
    """After both, the same sbatch command goes on."""
    words = [*LENGTH, "--checkpoint.every_n_train_steps", "4", "--data.num_workers", "1", *make_slow(tmp_path / "happened")]
    number, log = submit(slurm, run, painted, *words)
    wait_until(lambda: newest_step(run) >= 4, START, "a checkpoint of step 4", lambda: log.read_text())
    ranks = slurm.pair.second.processes("-m", "walt_pl", "fit")
    assert ranks
    os.kill(ranks[0], signal.SIGKILL)
    job = slurm.wait(number, 240, log)
    said = log.read_text()
    assert job["JobState"] == "FAILED" and re.search(r"slurm.sbatch: (failed with exit code \d+|ended by SIGTERM) after step 4", said), said
    assert "rank 0 on walt-1 lost the connection to rank 1 on walt-2" in said
    log.unlink()
    number, log = submit(slurm, run, painted, *words)
    wait_until(lambda: "step 5/16" in (log.read_text() if log.exists() else ""), START, "a second start", lambda: log.read_text())
    slurm.ask("scancel", number)
    (tmp_path / "happened").touch()  # SLURM kills after KillWait, which is 10 seconds here
    job = slurm.wait(number, 120, log)
    said = log.read_text()
    assert job["JobState"] == "CANCELLED", said
    (stop,) = re.findall(r"stopped by SIGTERM after step (\d+), everything is in", said)
    assert newest_step(run) == int(stop) > 4, said
