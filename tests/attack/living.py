"""`status`, `verify` and `sample` while a training lives: always a whole answer.

A base model is trained again and again by real starts of `fit`. Each has a few steps, a checkpoint after every one, and an artifact at its
end that replaces the one before.
"""

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.attack.outcome import Outcome, count_of
from tests.helpers.starts import fit, start
from tests.helpers.training import arguments
from walt_pl.cli.main import main
from walt_pl.shapes.dataset import write_set

TIMES = 100
"""Times that each command is asked."""
SAMPLE = ("--prompt", "a plain red circle moving left", "--steps", "1", "--device", "cpu", "--overwrite", "true")


def living(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Ask each command while a stage is trained and replaced."""
    run, index = folder / "run", write_set(folder / "shapes", videos=16, images=20, validation=6, seed=3)
    fit(*arguments("vae", run, index, "--trainer.max_steps", "2", "--model.warmup_steps", "1"))
    more = ["--trainer.max_steps", "4", "--model.warmup_steps", "1", "--checkpoint.every_n_train_steps", "1", "--from_scratch", "true"]
    command = arguments("base", run, index, *more)
    fit(*command)
    stop, failures = threading.Event(), list[str]()

    def train_for_ever() -> None:
        while not stop.is_set() and not failures:
            training = start("fit", *command)
            if training.wait():
                failures.append(training.said[-2000:])

    trainer = threading.Thread(target=train_for_ever)
    trainer.start()
    try:
        yield from ask(run, folder / "clip.mp4", count_of(TIMES, share), lambda: not failures)
    finally:
        stop.set()
        trainer.join()


def ask(run: Path, clip: Path, times: int, lives: Callable[[], bool]) -> Iterator[Outcome]:
    """Give the commands in turn, and judge what they print."""
    for number in range(times):
        for words, judge in (
            (("status", "--run", str(run), "--json"), judge_status),
            (("verify", "--run", str(run)), judge_verify),
            (("sample", "--run", str(run), "--out", str(clip), *SAMPLE), lambda said: judge_sample(said, clip)),
        ):
            attack = f"{words[0]} of a living training, number {number}"
            clip.unlink(missing_ok=True)
            if not lives():
                yield Outcome(attack, "wrong", "the training has died")
                return
            said, error = told(*words)
            problem = error or judge(said)
            yield Outcome(attack, "wrong" if problem else "unharmed", problem or said)


def told(*words: str) -> tuple[str, str]:
    """Return what a command prints, and its error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            main(words)
    except SystemExit as error:
        return printed.getvalue(), str(error)
    except Exception as error:
        return printed.getvalue(), f"{type(error).__name__}: {error}"
    return printed.getvalue(), ""


def judge_status(said: str) -> str:
    """Return what is wrong with the rows of `status`; empty for nothing."""
    rows = {row["stage"]: row for row in json.loads(said)}
    if not {"vae", "base"} <= set(rows):
        return f"stages are missing: {said}"
    # A stage in training has no state "done", and keeps its artifact: there are weights at every moment.
    wrong = [row for row in rows.values() if row["stage"] in ("vae", "base") and (row["state"] == "missing" or row["sha256"] is None)]
    return f"no artifact: {wrong}" if wrong else ""


def judge_verify(said: str) -> str:
    """Return what is wrong with the answer of `verify`; empty for nothing."""
    return "" if "every byte of vae, base is as its stage left it" in said else f"not whole: {said}"


def judge_sample(said: str, clip: Path) -> str:
    """Return what is wrong with the files of `sample`; empty for nothing."""
    return "" if clip.is_file() and clip.stat().st_size > 100 else f"no clip: {said}"
