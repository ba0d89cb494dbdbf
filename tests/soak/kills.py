"""kill -9 at random moments, the same command again, and the weights of a training that nobody killed.

    .venv/bin/python -m tests.soak.kills --kills 50

A small base model is trained with a checkpoint after every second step, so that many kills fall into the writing of one. After each
kill what lies on disk is looked at; at the end the artifact is compared byte by byte. `make soak` runs this.
"""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch

from tests.starts import fit, start
from tests.training import arguments, copy_parents
from walt_pl.checkpoint import Checkpoint, read_state
from walt_pl.data.shapes import write_set


def soak(folder: Path, index: Path, parents: Path, kills: int, steps: int, seed: int, stage: str = "base") -> dict[str, int]:
    """Kill a training so many times, then let it end.

    Returns:
        How many kills left an unfinished part, how many came before the first checkpoint, and how many starts went on from one.

    Raises:
        AssertionError: a whole checkpoint could not be read, or the weights are not those of the undisturbed training.
    """
    command = ["--trainer.max_steps", str(steps), "--checkpoint.every_steps", "2", "--trainer.val_check_interval", str(steps)]
    whole, killed = folder / "whole", folder / "killed"
    for run in (whole, killed):
        copy_parents(parents, run, stage)
    began = time.monotonic()
    fit(*arguments(stage, whole, index, *command))
    lasts = time.monotonic() - began
    chance = random.Random(seed)
    checkpoints = killed / "training" / stage / "checkpoints"
    counts = {"kills": 0, "while writing": 0, "before the first": 0, "went on": 0}
    while counts["kills"] < kills:
        if (killed / stage).exists():  # it reached the end between two kills: the rest is for another training
            assert_equal(killed, whole, stage)
            shutil.rmtree(killed)
            copy_parents(parents, killed, stage)
        training = start("fit", *arguments(stage, killed, index, *command))
        time.sleep(chance.uniform(0.2, lasts * 0.8))
        if not training.ranks[0].is_alive():
            assert training.wait() == 0, training.said[-3000:]
            continue
        training.kill()
        counts["kills"] += 1
        counts["went on"] += "going on from" in training.said
        counts["while writing"] += any(checkpoints.glob("*.part"))
        counts["before the first"] += Checkpoint.newest(checkpoints) is None
        for checkpoint in Checkpoint.all(checkpoints):
            assert read_state(checkpoint.state)["global_step"] == checkpoint.step
        print(f"kill {counts['kills']}/{kills}: {counts}", flush=True)
    fit(*arguments(stage, killed, index, *command))
    assert_equal(killed, whole, stage)
    return counts


def assert_equal(run: Path, whole: Path, stage: str) -> None:
    mine, theirs = ((folder / stage / "model.safetensors").read_bytes() for folder in (run, whole))
    assert mine == theirs, f"the weights in {run / stage} are not those in {whole / stage}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    index = write_set(folder / "shapes", videos=16, images=20, validation=6, seed=3)
    fit(*arguments("vae", folder / "parents", index, "--trainer.max_steps", "2", "--model.warmup", "1"))
    counts = soak(folder, index, folder / "parents", asked.kills, asked.steps, asked.seed)
    print(f"all resumed to the same weights: {counts}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
