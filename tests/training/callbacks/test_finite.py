"""Weights that are nan or infinite: they are no checkpoint and no artifact, their stage is not done, and every rank says how to go back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.checkpoint_files import describe_again
from tests.helpers.engine_training import start
from tests.helpers.guarded_training import POISONED, Guarded, poison_state, run
from tests.helpers.starts import fit
from tests.helpers.starts import start as start_program
from tests.training.test_resume import arguments
from walt_pl.cli.export import export_checkpoint
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.runs.finite import NonFiniteError
from walt_pl.runs.manifest import Manifest

NAN = float("nan")
ENGINES = ("ddp", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of seven steps with a checkpoint after the fifth."""
    folder = tmp_path_factory.mktemp("finite")
    start(
        folder,
        1,
        Guarded("single", steps=7),
        Guarded("single step", policy="off", spoil={5: NAN}, steps=7),
        Guarded("single weights", poison="weights", steps=7),
        Guarded("single average", poison="average", steps=7),
        Guarded("single raw", poison="weights", decay=0.0, steps=7),
        Guarded("resumed", poison="checkpoint", resume="single", steps=7),
        run=run,
    )
    start(
        folder,
        2,
        *(Guarded(f"{engine} step", engine, policy="off", poison="step", steps=7) for engine in ENGINES),
        *(Guarded(f"{engine} weights", engine, poison="weights", steps=7) for engine in ENGINES),
        *(Guarded(f"{engine} average", engine, poison="average", steps=7) for engine in ("ddp", "zero2", "zero3")),
        run=run,
    )
    return folder


def said(folder: Path, name: str) -> str:
    """The error, once every rank has been seen to end with it."""
    ranks = 1 if name.split()[0] in ("single", "resumed") else 2
    errors = {json.loads((folder / name / f"seen.{rank}.json").read_text())["said"] for rank in range(ranks)}
    assert len(errors) == 1
    return str(errors.pop())


def checkpoint(folder: Path, name: str, step: int) -> Path:
    return folder / name / "checkpoints" / f"step={step:08d}"


@pytest.mark.parametrize("engine", ["single", *ENGINES])
def test_checkpoints_writes_none_of_weights_that_are_not_finite(folder: Path, engine: str) -> None:
    """On every rank: the last good one stays the newest, and the message names it."""
    name = f"{engine} step"
    error = said(folder, name)
    assert "step 7: training ends without a checkpoint: " in error and "are nan or infinite" in error
    assert f"add --ckpt_path {checkpoint(folder, name, 5)} to the command" in error
    assert [one.step for one in Checkpoint.all(folder / name / "checkpoints")] == [5]
    assert not (folder / name / "run" / "base").exists()


@pytest.mark.parametrize("name", [*(f"{engine} weights" for engine in ("single", *ENGINES)), "single raw"])
def test_export_artifact_writes_none_of_weights_that_are_not_finite(folder: Path, name: str) -> None:
    size = load_file(folder / "single" / "weights.safetensors")[POISONED].numel()
    error, done = said(folder, name), folder / name / "run"
    assert f'stage "base" is not done, {done / "base"} is not written: {size:,} of {size:,} values of {POISONED} are nan' in error
    assert f"python -m walt_pl export {checkpoint(folder, name, 5)} --out DIR" in error
    assert not (done / "base").exists() and Manifest.open(done).state("base") == "training"


@pytest.mark.parametrize("engine", ["single", "ddp", "zero2", "zero3"])
def test_export_artifact_writes_none_of_an_ema_that_is_not_finite(folder: Path, engine: str) -> None:
    """The weights themselves are sound here: rank zero alone sees the averages whole, and all end alike."""
    name = f"{engine} average"
    assert f"values of {POISONED} are nan or infinite" in said(folder, name)
    assert not (folder / name / "run" / "base").exists() and Manifest.open(folder / name / "run").state("base") == "training"


def test_checkpoint_resume_refuses_weights_that_are_not_finite(folder: Path) -> None:
    error = said(folder, "resumed")
    assert f"{checkpoint(folder, 'resumed', 5)} is of no use: " in error and POISONED in error
    assert "there is no earlier checkpoint in" in error and "--from_scratch true" in error


def poison_averages(path: Path) -> None:
    averages = load_file(path / "ema.safetensors")
    averages[POISONED].fill_(torch.inf)
    save_file(averages, path / "ema.safetensors")
    describe_again(path)


@pytest.mark.parametrize(("ema", "poison"), [(True, poison_averages), (False, poison_state)])
def test_export_refuses_a_checkpoint_that_is_not_finite(folder: Path, tmp_path: Path, ema: bool, poison: object) -> None:
    """And leaves the artifact that is there; the other kind of weights, which is sound, is exported."""
    away = shutil.copytree(folder / "single" / "checkpoints", tmp_path / "away")
    poison(away / "step=00000007")  # type: ignore[operator]
    _, before = export_checkpoint(away / "step=00000005", tmp_path / "out")
    with pytest.raises(NonFiniteError, match=rf"values of {POISONED} are nan .* python -m walt_pl export .*step=00000005 --out DIR"):
        export_checkpoint(away, tmp_path / "out", ema=ema)
    assert load(tmp_path / "out", verify=True).sha256 == before
    assert export_checkpoint(away, tmp_path / "out", ema=not ema)[0].step == 7


def test_fit_command_after_nan_weights_resumes_from_the_checkpoint_it_names(painted: Path, tmp_path: Path) -> None:
    steps = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "6", "--checkpoint.every_n_train_steps", "4"]
    steps += ["--spike_guard.policy", "off"]
    typed = arguments("vae", tmp_path / "run", painted, *steps, "--model.adversarial_weight", "0", "--data.videos_per_batch", "4")
    spoil = "[{class_path: tests.helpers.guarded_training.Spoil, init_args: {factors: {5: .nan}}}]"
    started = start_program("fit", *typed, "--trainer.callbacks", spoil)
    assert started.wait() == 1, started.said[-3000:]
    assert "error: step 6: training ends without a checkpoint: " in started.said and "Traceback" not in started.said
    assert Manifest.open(tmp_path / "run").state("vae") == "training" and not (tmp_path / "run" / "vae").exists()
    named = started.said.partition("--ckpt_path ")[2].split()[0]
    fit(*typed, "--ckpt_path", named)
    assert Manifest.open(tmp_path / "run").state("vae") == "done"
