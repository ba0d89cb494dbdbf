"""Printed text: nothing that a user cannot act on, and each real warning as one sentence."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT, Walt
from tests.helpers.training import arguments
from walt_pl.cli.quiet import silence_libraries
from walt_pl.runs.progress import TrainingProgress

PROGRESS = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step %d/2  \d+\.\d\d s a step  \d:\d\d:\d\d left  train/loss \d\S+"
USED = [
    "train: 16 of 16 videos used",
    "train: 20 of 20 images used",
    "val: 4 of 6 videos used; left out: 2 beyond the first ones that were asked for",
    "val: 1 of 1 images used",
]
LOSS, PSNR = [r"last validation: val/loss \d\S+"], [r"last validation: val/psnr_image \d\S+  val/psnr_video \d\S+"]
# Lightning warns when an epoch of 8 steps has fewer steps than an interval of its log.
TWO_STEPS = [
    *["--trainer.max_steps", "2", "--model.warmup_steps", "1", "--trainer.val_check_interval", "2"],
    *["--trainer.log_every_n_steps", "10"],
]


def assert_lines(said: str, wanted: list[str]) -> None:
    """Compare a whole log with regular expressions, one a line."""
    lines = said.splitlines()
    assert len(lines) == len(wanted) and all(map(re.fullmatch, wanted, lines)), f"wanted {wanted}, printed:\n{said}"


def last_lines(run: Path, stage: str, figures: list[str]) -> list[str]:
    """Return the last lines of a training that reached its end: the artifact, the figures, the next command."""
    done = f'stage "{stage}" is done after step 2; artifact: {re.escape(str(run / stage))}'
    return [done, *figures, f"next: (make|python -m walt_pl) .*{re.escape(str(run))}.*"]


@pytest.fixture(scope="module")
def run(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with an autoencoder, and the log of its training."""
    folder = tmp_path_factory.mktemp("runs") / "quiet"
    return folder, walt("fit", *arguments("vae", folder, painted), *TWO_STEPS, "--data.val_videos", "4").said


def test_fit_log_has_the_data_and_the_progress_only(run: tuple[Path, str]) -> None:
    assert_lines(run[1], [*USED, PROGRESS % 1, PROGRESS % 2 + r"  val/psnr_video \d\S+", *last_lines(run[0], "vae", PSNR)])


def test_fit_log_of_a_base_has_no_empty_lines_for_its_caches(walt: Walt, run: tuple[Path, str], painted: Path) -> None:
    said = walt("fit", *arguments("base", run[0], painted), *TWO_STEPS, "--data.val_videos", "4").said
    assert_lines(said, [*USED, PROGRESS % 1, PROGRESS % 2 + r"  val/loss \d\S+", *last_lines(run[0], "base", LOSS)])


def test_fit_log_without_validation_is_as_short(walt: Walt, painted: Path, tmp_path: Path) -> None:
    precise = ["--trainer.precision", "bf16-mixed"]
    said = walt("fit", *arguments("vae", tmp_path / "run", painted), *TWO_STEPS, "--data.val_videos", "0", *precise).said
    last = last_lines(tmp_path / "run", "vae", ["last validation: none in this start"])
    assert_lines(said, [*USED[:2], PROGRESS % 1, PROGRESS % 2, *last])


def test_validate_log_shows_a_real_warning_as_one_sentence(walt: Walt, run: tuple[Path, str], painted: Path) -> None:
    checkpoints = run[0] / "training" / "vae" / "checkpoints"
    (torn := checkpoints / "step=00000099").mkdir()
    lines = walt("validate", *arguments("vae", run[0], painted)).said.splitlines()
    torn.rmdir()
    assert lines[0].startswith(f"warning: skipped: {torn} is incomplete: there is no checkpoint.json")
    assert lines[1] == f"validating {checkpoints / 'step=00000002'}"
    assert [line for line in lines[2:] if line[0] not in "┏┃┡│└"] == []


def test_plan_log_is_the_plan(walt: Walt) -> None:
    assert walt("plan", "--config", "experiments/shapes/base.yaml").said.startswith("base (stages.base.BaseStage)")


def test_warning_has_its_text_and_no_line_of_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        silence_libraries()
        warnings.warn("the disk is nearly full; make room", stacklevel=1)
        warnings.warn("is_causal will go", FutureWarning, stacklevel=1)
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
    assert capsys.readouterr().err == "warning: the disk is nearly full; make room\n"


LEAK = """
import multiprocessing, os, sys
from walt_pl.cli.quiet import silence_libraries
from walt_pl.runs.progress import TrainingProgress
if sys.argv[1] == "quiet":
    silence_libraries()
assert not {"torch", "lightning", "numpy"} & set(sys.modules)
semaphore = multiprocessing.get_context("spawn").Semaphore()
os._exit(0)
"""


@pytest.mark.parametrize(("how", "shown"), [("loud", True), ("quiet", False)])
def test_quiet_process_leaves_no_word_of_leaked_semaphores(how: str, shown: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    # The tracker is the last to close the pipe, so all that it prints is read.
    done = subprocess.run([sys.executable, "-c", LEAK, how], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ("leaked semaphore" in done.stderr) == shown, done.stderr
    assert shown or done.stderr == ""


def test_fit_command_leaves_its_progress_for_status(run: tuple[Path, str]) -> None:
    progress = TrainingProgress.read(run[0] / "training" / "vae")
    assert progress is not None and (progress.step, progress.total) == (1, 2) and progress.steps_per_second > 0
    assert progress.command.startswith("python -m walt_pl fit --config ") and "--data.val_videos 4" in progress.command
    assert Path(progress.checkpoints) == run[0] / "training" / "vae" / "checkpoints"
