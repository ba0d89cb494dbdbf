"""kill -9 at random moments, the same command again, and the weights of a training that nobody killed.

    .venv/bin/python -m tests.soak.kills --kills 50

A small base model is trained with a checkpoint after every second step, on one process and then, with `--zero-kills`, in ZeRO's shards on
two ranks. After each kill what lies on disk is looked at; at the end the artifact is compared byte by byte. `make soak`
runs this.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.helpers.starts import Start, fit, start
from tests.helpers.training import ADAMW, SHARDED, arguments, copy_parents
from walt_pl.runs.checkpoint import Checkpoint, read_state
from walt_pl.shapes.dataset import write_set

CHECKPOINTS = Path("training/base/checkpoints")


def soak(folder: Path, index: Path, parents: Path, kills: int, steps: int, seed: int, *more: str, ranks: int = 1) -> dict[str, int]:
    """Kill a base training at random moments, every second time while it writes a checkpoint, until so many starts that go on from one
    were killed; then let it end.

    Returns:
        Kills, how many of them left an unfinished checkpoint, how many hit a start that went on from one, and how many trainings ended.

    Raises:
        AssertionError: a whole checkpoint could not be read, or the weights are not those of the undisturbed training.
    """
    command = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
    command += ["--checkpoint.every_n_train_steps", "2", *more]
    whole, killed = folder / "whole", folder / "killed"
    for run in (whole, killed):
        copy_parents(parents, run, "base")
    first = time.monotonic()
    undisturbed = start("fit", *arguments("base", whole, index, *command), ranks=ranks)
    writes(undisturbed, whole / CHECKPOINTS)
    first = time.monotonic() - first
    assert undisturbed.wait() == 0, undisturbed.said[-3000:]
    chance, checkpoints = random.Random(seed), killed / CHECKPOINTS
    counts = {"kills": 0, "while writing": 0, "of starts that went on": 0, "trainings": 1}
    while counts["of starts that went on"] < kills:
        if (killed / "base").exists():  # it reached the end between two kills: the rest is for another training
            assert_equal(killed, whole)
            shutil.rmtree(killed)
            copy_parents(parents, killed, "base")
            counts["trainings"] += 1
        goes_on = Checkpoint.newest(checkpoints) is not None
        training = start("fit", *arguments("base", killed, index, *command), ranks=ranks)
        time.sleep(chance.uniform(0.2, 2 * first))
        if chance.random() < 0.5:
            writes(training, checkpoints)
            time.sleep(chance.uniform(0, 0.03))
        if not training.ranks[0].is_alive():
            assert training.wait() == 0, training.said[-3000:]
            continue
        training.kill()
        counts["kills"] += 1
        counts["while writing"] += any(checkpoints.glob("*.part"))
        counts["of starts that went on"] += goes_on
        for checkpoint in Checkpoint.all(checkpoints):
            assert read_state(checkpoint.state)["global_step"] == checkpoint.step
        print(f"{counts['of starts that went on']}/{kills}: {counts}", flush=True)
    fit(*arguments("base", killed, index, *command), ranks=ranks)
    assert_equal(killed, whole)
    return counts


def writes(training: Start, checkpoints: Path) -> None:
    """Wait until it begins to write a checkpoint, or ends."""
    while training.ranks[0].is_alive() and not any(checkpoints.glob("*.part")):
        time.sleep(0.001)


def assert_equal(run: Path, whole: Path) -> None:
    mine, theirs = ((folder / "base" / "model.safetensors").read_bytes() for folder in (run, whole))
    assert mine == theirs, f"the weights in {run / 'base'} are not those in {whole / 'base'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of starts that went on from a checkpoint")
    parser.add_argument("--zero-kills", type=int, default=10, help="the same in ZeRO's shards on two ranks")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    for name, counts in soak_all(folder, asked.kills, asked.zero_kills, asked.steps, asked.seed):
        print(f"{name}: every training ended with the same weights: {counts}", flush=True)
    shutil.rmtree(folder)


def soak_all(folder: Path, kills: int, zero_kills: int, steps: int, seed: int) -> Iterator[tuple[str, dict[str, int]]]:
    """Run `soak` on one process and in ZeRO's shards on two ranks, and yield the name and the counts of each."""
    index = write_set(folder / "shapes", videos=16, images=20, validation=6, seed=3)
    fit(*arguments("vae", folder / "parents", index, "--trainer.max_steps", "2", "--model.warmup_steps", "1"))
    trainings = {
        "one process": ([], 1, kills),
        "ZeRO 2 on two ranks": ([*SHARDED, *ADAMW], 2, zero_kills),
    }
    for name, (more, ranks, count) in trainings.items():
        if count:
            yield name, soak(folder / name.replace(" ", "_"), index, folder / "parents", count, steps, seed, *more, ranks=ranks)


if __name__ == "__main__":
    main()
