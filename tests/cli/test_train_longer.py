"""A finished stage that trains longer is the training that had the later end from the beginning, to the last bit."""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.starts import fit, start
from tests.helpers.tiny_artifact import save
from tests.helpers.training import arguments
from tests.training.test_resume import assert_same
from walt_pl.cli.train_longer import FinishedTraining, Limits
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.status import status_rows

N = 6
CONSTANT = ["--model.lr_schedule", "constant", "--data.val_videos", "0"]
BOMB = ["--trainer.callbacks", "[{class_path: tests.training.test_resume.Kill, init_args: {step: 9}}]"]


@dataclass(frozen=True)
class Case:
    steps: int
    epochs: int | None
    trained: Limits
    typed: Limits
    longer: bool

    @property
    def finished(self) -> FinishedTraining:
        trainer = {"max_steps": self.trained.max_steps or -1, "max_epochs": self.trained.max_epochs or -1}
        return FinishedTraining(Path("runs/x/vae"), self.steps, self.epochs, {"trainer": trainer})


CASES = {
    "the same end": Case(12, 1, Limits(12, None), Limits(12, None), False),
    "a later step": Case(12, 1, Limits(12, None), Limits(24, None), True),
    "an earlier step": Case(12, 1, Limits(12, None), Limits(6, None), False),
    "no end": Case(12, 1, Limits(12, None), Limits(None, None), True),
    "a later epoch": Case(16, 2, Limits(None, 2), Limits(None, 3), True),
    "the same epoch": Case(16, 2, Limits(None, 2), Limits(None, 2), False),
    "a later step, and the epoch is reached": Case(16, 2, Limits(50, 2), Limits(100, 2), False),
    "a later epoch, and the step is reached": Case(12, 1, Limits(12, 2), Limits(12, 4), False),
    "an older artifact of epochs": Case(16, None, Limits(None, 2), Limits(None, 3), True),
    "an early stop": Case(10, 1, Limits(50, None), Limits(50, None), False),
    "an early stop and a later step": Case(10, 1, Limits(50, None), Limits(60, None), True),
    "epochs in place of steps": Case(12, 1, Limits(12, None), Limits(None, 4), True),
}


@pytest.mark.parametrize("name", CASES)
def test_finished_training_is_shorter_only_if_the_limit_that_ended_it_is_higher(name: str) -> None:
    case = CASES[name]
    assert case.finished.limits == case.trained
    assert case.finished.is_shorter_than(case.typed) is case.longer


ENDS = {
    "the same end": ("step 12 (trainer.max_steps 12)", "--trainer.max_steps N with N above 12"),
    "the same epoch": ("step 16 (trainer.max_epochs 2)", "--trainer.max_epochs N with N above 2"),
    "an early stop": ("step 10 (before trainer.max_steps 50)", "--trainer.max_steps N with N above 50"),
}


@pytest.mark.parametrize("name", ENDS)
def test_finished_training_names_its_end_and_the_option_that_trains_longer(name: str) -> None:
    finished = CASES[name].finished
    assert (finished.describe(), finished.longer()) == ENDS[name]


@pytest.fixture(scope="module")
def done(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder of N steps, and a base model that counts as trained from it."""
    run = tmp_path_factory.mktemp("done") / "run"
    fit(*arguments("vae", run, painted, *CONSTANT, "--trainer.max_steps", str(N)))
    chain = Manifest.open(run)
    chain.start("base", parents := chain.check_parents("base"))
    save(run / "base", kind="base", card={"parents": parents})
    chain.finish("base", run / "base")
    return run


def test_fit_command_with_larger_max_steps_equals_one_training(done: Path, painted: Path, tmp_path: Path) -> None:
    """Killed on the way, the old artifact stays that of the stage; at the new end it is replaced, and children become stale."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    shutil.copytree(done, run)
    command = [*arguments("vae", run, painted, *CONSTANT), "--checkpoint.every_n_train_steps", "4", "--trainer.max_steps"]
    chain, old = Manifest.open(run), load(run / "vae").sha256
    killed = start("fit", *command, str(2 * N), *BOMB)
    assert killed.wait() == -signal.SIGKILL, killed.said[-3000:]
    assert (
        f"is done after step {N} (trainer.max_steps {N}), and trains longer; the artifact of step {N} stays until the new end"
        in killed.said
    )
    assert "learning rate" not in killed.said and f"step={N:08d}" in killed.said
    assert [(row.stage, row.state, row.step) for row in status_rows(run)] == [("vae", "stopped", 8), ("base", "done", None)]
    assert chain.check_parents("base") == {"vae": old} and load(run / "vae").sha256 == old

    child = fit(*arguments("base", run, painted, "--trainer.fast_dev_run", "true"))
    assert 'stage "vae" is in training again (not finished); its artifact of before is used' in child

    less = fit(*command, str(N))
    assert f"is stopped at step 8; its artifact of step {N} (trainer.max_steps {N}) stays, and nothing was trained" in less
    assert load(run / "vae").sha256 == old and "To go on add --trainer.max_steps N with N above 8" in less

    assert "going on from" in fit(*command, str(2 * N))
    fit(*arguments("vae", whole, painted, *CONSTANT, "--trainer.max_steps", str(2 * N)))
    assert_same(run, whole, "vae", first=8, steps=2 * N)
    assert load(run / "vae").card["steps"] == 2 * N and load(run / "vae").sha256 != old
    assert [(row.stage, row.state) for row in status_rows(run)] == [("vae", "done"), ("base", "stale")]


def test_fit_command_without_checkpoints_says_that_it_can_only_start_over(done: Path, painted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    command = arguments("vae", run, painted, *CONSTANT, "--trainer.max_steps")
    advice = f"add --from_scratch true (make: FRESH=1) to start over, with --init {run / 'vae'} from its weights"
    said = fit(*command, str(N))
    assert "nothing was trained" in said and "has no checkpoint to train it longer from" in said and advice in said
    longer = start("fit", *command, str(2 * N))
    assert longer.wait() == 1 and "has no whole checkpoint from which it could train longer" in longer.said and advice in longer.said


def test_fit_command_fast_dev_run_leaves_everything_as_it_was(done: Path, painted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    checkpoint = Checkpoint.newest(run / "training" / "vae" / "checkpoints")
    assert checkpoint is not None and checkpoint.step == N
    said = fit(*arguments("vae", run, painted, "--trainer.fast_dev_run", "true", "--model.warmup_steps", "30"))
    assert said.splitlines()[-1] == 'stage "vae": trainer.fast_dev_run tried 1 steps; no checkpoint, no artifact'
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert Manifest.open(run).state("vae") == "done"
