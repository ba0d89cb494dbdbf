"""Ctrl-C in a terminal reaches make, the command, the training and its workers. The training writes a checkpoint, and all wait for it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from tests.helpers.training import arguments
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.runs.manifest import Manifest

RUN_FIT = "import sys; from walt_pl.cli.run_fit import run_fit; run_fit(sys.argv[1:], 'demo: the stage of vae.yaml')"


def interrupt(words: Sequence[str], log: Path) -> tuple[int, str]:
    """Start a command in a process group of its own, press Ctrl-C while it trains, and return its exit code and output."""
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 180
        while not re.search(r"step \d+/100000", said := log.read_text()):
            assert time.monotonic() < end and process.poll() is None, said[-3000:]
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        return process.wait(60), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("through", ["make", "demo"])
def test_fit_command_ctrl_c_leaves_a_checkpoint_and_says_what_to_type(through: str, painted: Path, tmp_path: Path) -> None:
    """The loader's workers read on until the step is done."""
    run = tmp_path / "run"
    typed = arguments(
        "vae", run, painted, "--trainer.max_steps", "100000", "--data.num_workers", "2", "--checkpoint.every_n_train_steps", "0"
    )
    if through == "make":
        # `-o data`: the painted set of the tests takes the place of data/shapes.
        words = ["make", "-o", "data", "train-vae", "EXP=shapes", f"RUN={run}", f"ARGS={shlex.join(typed[4:])}"]
    else:
        words = [sys.executable, "-c", RUN_FIT, *typed]
    code, said = interrupt(words, tmp_path / "log")
    last = Checkpoint.newest(run / "training" / "vae" / "checkpoints")
    assert code and last is not None, said[-3000:]
    assert f"stopped by SIGINT after step {last.step}, everything is in {last.path}; the same command goes on" in said
    assert f'stage "vae" stopped at step {last.step} of 100000; checkpoint: {last.path}' in said
    assert "next: python -m walt_pl fit --config " in said and "Traceback" not in said
    assert Manifest.open(run).state("vae") == "stopped" and not (run / "vae").exists()
    if through == "demo":
        assert said.endswith("demo: the stage of vae.yaml was interrupted; the same command goes on from there\n")
