"""The link between two machines is cut for longer than the time-out of the process group."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import LENGTH, START, assert_same_bytes, make_slow, newest_step
from tests.cluster.machines import TOOLS, Pair, find_missing, wait_for_end, wait_until
from tests.helpers.environment import ROOT
from tests.helpers.training import ADAMW, arguments
from walt_pl.runs.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.skipif(bool(find_missing(TOOLS)), reason=find_missing(TOOLS))]
TIME_OUT = 120.0
"""Seconds. The ranks start far apart on busy processors, and wait for each other then, too."""
STRATEGY = "{class_path: walt_pl.strategies.Zero, init_args: {stage: 2, timeout: '0:02:00'}}"


def start(pair: Pair, run: Path, index: Path) -> list[subprocess.Popen[bytes]]:
    """Type the command on both machines, each with the place of the first one."""
    words = [
        "--trainer.num_nodes",
        "2",
        "--trainer.strategy",
        STRATEGY,
        "--checkpoint.every_n_train_steps",
        "4",
        *make_slow(run.parent / "happened"),
    ]
    command = [str(ROOT / ".venv" / "bin" / "python"), "-m", "walt_pl", "fit", *arguments("base", run, index, *ADAMW, *LENGTH, *words)]
    place = {"MASTER_ADDR": pair.first.name, "MASTER_PORT": "29511", "OMP_NUM_THREADS": "1"}
    return [machine.start("fit", *command, environment={**place, "NODE_RANK": str(rank)}) for rank, machine in enumerate(pair)]


def test_ranks_whose_link_is_cut_end_with_the_cause_and_the_same_command_goes_on(pair: Pair, run: Path, whole: Path, painted: Path) -> None:
    def said() -> str:
        return "\n".join(f"--- {machine.name}\n{machine.said('fit')}" for machine in pair)

    ranks = start(pair, run, painted)
    wait_until(lambda: newest_step(run) >= 4, START, "a checkpoint of step 4", said)
    pair.cut()
    (run.parent / "happened").touch()
    assert [wait_for_end(rank, START + TIME_OUT, said) for rank in ranks] == [1, 1], said()
    for machine, this, other in (
        (pair.first, "rank 0 on walt-1", "rank 1 on walt-2"),
        (pair.second, "rank 1 on walt-2", "rank 0 on walt-1"),
    ):
        (line,) = [line for line in machine.said("fit").split("\n") if line.startswith("error: ")]
        assert line.startswith(f"error: {this} heard nothing from {other} for 0:02:00, the time-out of the process group ("), said()
        assert "raise trainer.strategy.init_args.timeout. The last checkpoint stays; the same command goes on" in line
    last = Checkpoint.newest(run / "training" / "base" / "checkpoints", hashed=True)
    assert last is not None and last.step >= 4
    pair.mend()
    ranks = start(pair, run, painted)
    assert [wait_for_end(rank, 2 * START, said) for rank in ranks] == [0, 0], said()
    assert f"going on from {last.path}" in said()
    assert_same_bytes(run, whole)
