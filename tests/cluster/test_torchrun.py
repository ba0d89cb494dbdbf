"""launch/torchrun.sh on two machines of one process each: processes and agents that are killed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cluster.conftest import LENGTH, START, assert_same_bytes, make_slow, newest_step
from tests.cluster.machines import TOOLS, Machine, Pair, find_missing, wait_for_end, wait_until
from tests.helpers.environment import ROOT
from tests.helpers.training import ADAMW, options

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.skipif(bool(find_missing(TOOLS)), reason=find_missing(TOOLS))]


class Training:
    """The base under ZeRO 2, started on both machines."""

    def __init__(self, pair: Pair, run: Path, index: Path, *more: str, variables: Mapping[str, str] | None = None) -> None:
        self.pair, self.run = pair, run
        self.happened = run.parent / "happened"
        more = ("--checkpoint.every_n_train_steps", "4", *make_slow(self.happened), *more)
        self.words = [str(ROOT / "launch" / "torchrun.sh"), *options("base", index, *ADAMW, *LENGTH, *more)]
        self.variables = {"EXP": "shapes", "STRATEGY": "zero2", "RUN": str(run), "NODES": "2", "GPUS": "1", "HEAD": pair.first.name}
        self.variables |= {"OMP_NUM_THREADS": "1", "JOIN": "120", "GRACE": "60", **(variables or {})}
        self.scripts: dict[str, subprocess.Popen[bytes]] = {}
        for rank, machine in enumerate(pair):
            self.start(machine, rank)

    def start(self, machine: Machine, rank: int) -> None:
        """Type the command on a machine."""
        self.scripts[machine.name] = machine.start("torchrun", *self.words, environment={**self.variables, "NODE_RANK": str(rank)})

    @property
    def said(self) -> str:
        return "\n".join(f"--- {machine.name}\n{machine.said('torchrun')}" for machine in self.pair)

    def codes(self, seconds: float) -> list[int]:
        """Exit codes of both scripts."""
        return [wait_for_end(self.scripts[machine.name], seconds, lambda: self.said) for machine in self.pair]

    def until_step(self, step: int) -> None:
        """Wait for a checkpoint, or until a script has ended without it."""

        def holds() -> bool:
            return newest_step(self.run) >= step or any(script.poll() is not None for script in self.scripts.values())

        wait_until(holds, START, f"a checkpoint of step {step}", lambda: self.said)
        assert newest_step(self.run) >= step, self.said


def rank_of(machine: Machine) -> int:
    """Return the process of the rank of a machine."""
    (rank,) = machine.processes("-m", "walt_pl", "fit", without="torch.distributed.run")
    return rank


def agent_of(machine: Machine) -> int:
    """Return the process of the agent of a machine."""
    (agent,) = machine.processes("-m", "torch.distributed.run")
    return agent


def test_torchrun_agents_restart_the_ranks_after_one_was_killed(pair: Pair, run: Path, whole: Path, painted: Path) -> None:
    training = Training(pair, run, painted)
    training.until_step(4)
    os.kill(rank_of(pair.second), signal.SIGKILL)
    training.happened.touch()
    assert training.codes(2 * START) == [0, 0], training.said
    assert "going on from" in training.said and training.said.count("torchrun.sh: the stage is done") == 2
    assert "starting it again" not in training.said, "the agents lived on"
    assert_same_bytes(run, whole)


def test_torchrun_script_restarts_an_agent_that_was_killed(pair: Pair, run: Path, whole: Path, painted: Path) -> None:
    """Its rank is ended with a checkpoint, and the agent of the other machine starts its rank again."""
    training = Training(pair, run, painted)
    training.until_step(4)
    os.kill(agent_of(pair.second), signal.SIGKILL)
    wait_until(lambda: "starting it again" in pair.second.said("torchrun"), START, "a second agent", lambda: training.said)
    training.happened.touch()
    assert training.codes(2 * START) == [0, 0], training.said
    second = pair.second.said("torchrun")
    assert "processes were left behind; ending them" in second
    assert re.search(r"stopped by SIGTERM after step \d+, everything is in", training.said), "rank zero may be on either machine"
    assert re.search(r"the agent ended with exit code 137 after step \d+; starting it again", second)
    assert "starting it again" not in pair.first.said("torchrun"), "its agent lived on"
    assert_same_bytes(run, whole)


def test_torchrun_head_that_is_killed_ends_the_job_and_the_same_command_goes_on(pair: Pair, run: Path, whole: Path, painted: Path) -> None:
    """Script, agent and rank of machine 0 are killed, as if it had lost its power."""
    training = Training(pair, run, painted, variables={"JOIN": "90", "RESTARTS": "1"})
    training.until_step(4)
    for process in [*pair.first.processes(training.words[0]), *pair.first.processes("walt_pl")]:
        os.kill(process, signal.SIGKILL)
    training.happened.touch()
    code = wait_for_end(training.scripts[pair.second.name], START + 60, lambda: training.said)
    assert code not in (0, 130, 138, 143), training.said
    second = pair.second.said("torchrun")
    assert re.search(r"torchrun.sh: the agent ended with exit code \d+, and 2 starts in a row saved no step after step \d+", second)
    assert newest_step(run) >= 4
    time.sleep(1)
    for rank, machine in enumerate(pair):
        training.start(machine, rank)
    assert training.codes(2 * START) == [0, 0], training.said
    assert "going on from" in training.said
    assert_same_bytes(run, whole)
