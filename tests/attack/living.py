"""`status`, `verify` and `sample` while a training lives: always a whole answer.

The training is a process that goes through all that a training writes, without its arithmetic, some times a second: start, progress,
checkpoint, artifact, record.
"""

import contextlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random

from tests.attack.artifacts import write_run
from tests.attack.outcome import Outcome, count_of
from walt_pl.cli.main import main

TIMES = 100
"""Times that each command is asked."""
SAMPLE = ("--prompt", "a plain red circle moving left", "--steps", "1", "--device", "cpu", "--overwrite", "true")


def living(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Ask each command while stages are trained and replaced."""
    run = write_run(folder / "run")
    context = multiprocessing.get_context("spawn")
    stop, begun = context.Event(), context.Event()
    writer = context.Process(target=train_for_ever, args=(run, stop, begun))
    writer.start()
    try:
        if not begun.wait(120):
            raise RuntimeError("the training of the attack did not begin")
        yield from ask(run, folder / "clip.mp4", count_of(TIMES, share), lambda: writer.is_alive())
    finally:
        stop.set()
        writer.join(60)
        if writer.is_alive():
            writer.kill()
            writer.join()


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


def train_for_ever(run: Path, stop: Event, begun: Event) -> None:
    """Go through the trainings of a base, each from the same autoencoder, until `stop` is set."""
    import torch

    from walt_pl.files import write_whole
    from walt_pl.runs.artifact import load
    from walt_pl.runs.artifact_writing import save_artifact
    from walt_pl.runs.manifest import Manifest
    from walt_pl.runs.progress import CHECKPOINT_CARD, TrainingProgress

    manifest, training = Manifest.open(run), run / "training" / "base"
    made = load(run / "base")
    files = {"tokenizer.model": made.read("tokenizer.model")}
    step = 0
    while not stop.is_set():
        step += 1
        parents = manifest.check_parents("base", allow_stale=True)
        manifest.start("base", parents)
        TrainingProgress(step, step + 1, 10.0, str(training / "checkpoints")).write(training)
        for kept in sorted((training / "checkpoints").glob("step=*"))[:-2]:
            shutil.rmtree(kept)
        checkpoint = training / "checkpoints" / f"step={step:08d}"
        checkpoint.mkdir(parents=True)
        write_whole(checkpoint / CHECKPOINT_CARD, b"{}")
        with torch.no_grad():
            next(made.models["denoiser"].parameters()).add_(1e-3)
        save_artifact(
            run / "base",
            kind="base",
            models=made.models,
            sampling_config={"diffusion": made.config["diffusion"]},
            card={"parents": parents, "steps": step},
            train_config="",
            files=files,
        )
        stop.wait(0.05)  # a slow file system: the artifact is there, its record is not
        manifest.finish("base", run / "base")
        begun.set()
        stop.wait(0.1)
