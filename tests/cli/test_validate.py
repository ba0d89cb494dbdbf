"""Weights that `walt validate` takes, and the figures that it gives."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.environment import Walt
from tests.helpers.training import arguments
from walt_pl.cli.main import main
from walt_pl.cli.validate import ValidateCLI
from walt_pl.runs.checkpoint import Checkpoint

TWO_STEPS = [
    "--trainer.max_steps",
    "2",
    "--model.warmup_steps",
    "1",
    "--trainer.val_check_interval",
    "2",
    "--checkpoint.every_n_train_steps",
    "1",
]


@pytest.fixture(scope="module")
def run(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and a base."""
    folder = tmp_path_factory.mktemp("runs") / "validated"
    for stage in ("vae", "base"):
        walt("fit", *arguments(stage, folder, painted), *TWO_STEPS)
    return folder


def validate(*words: str) -> dict[str, float]:
    """Run `walt validate` in this process, and return its figures."""
    return {name: float(value) for name, value in ValidateCLI(["validate", *words]).trainer.callback_metrics.items()}


@pytest.mark.parametrize("stage", ["vae", "base"])
def test_validate_command_gives_the_figures_of_the_last_validation_of_the_training(
    stage: str, run: Path, painted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """First from the newest checkpoint, then from the artifact alone; both with the averaged weights."""
    words, folder = arguments(stage, run, painted), run / "training" / stage / "checkpoints"
    last = Checkpoint.newest(folder)
    assert last is not None and last.step == 2 and last.metrics
    assert validate(*words) == last.metrics
    assert f"validating {last.path}\n" in capfd.readouterr().out
    first = validate(*words, "--ckpt_path", str(folder / "step=00000001"))
    assert first != last.metrics and f"validating {folder}/step=00000001\n" in capfd.readouterr().out
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("training")))
    figures = validate(*arguments(stage, copy, painted))
    assert figures == last.metrics and f"validating {copy / stage}, an artifact\n" in capfd.readouterr().out
    assert validate(*arguments(stage, copy, painted), "--init", str(run / stage)) == last.metrics
    assert f"validating {run / stage}, an artifact\n" in capfd.readouterr().out


def test_validate_command_refuses_random_weights(run: Path, painted: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["validate", *arguments("vae", tmp_path / "run", painted)])
    assert str(refused.value) == (
        f'error: validate: stage "vae" has neither a whole checkpoint in {tmp_path}/run/training/vae/checkpoints nor an artifact in '
        f'{tmp_path}/run/vae; train it first: make train-vae EXP=shapes ARGS="--run {tmp_path}/run", or name a checkpoint: '
        "--ckpt_path FOLDER"
    )
