"""A training that goes on says what has changed since its checkpoint, and refuses what breaks its model."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.environment import Walt
from tests.helpers.training import arguments
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import Checkpoint, read_state
from walt_pl.runs.task_record import TASK, encode_task, read_task
from walt_pl.text.small_encoder import VOCABULARY

SHORT = ["--model.warmup_steps", "1", "--data.val_videos", "0", "--model.lr_schedule", "constant", "--trainer.max_steps"]
LONGER = [*SHORT, "3"]


@pytest.fixture(scope="module")
def trained(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder of one step and a base model of two, which learnt its vocabulary from the captions."""
    run = tmp_path_factory.mktemp("trained") / "run"
    for stage, steps in (("vae", "1"), ("base", "2")):
        walt("fit", *arguments(stage, run, painted, *SHORT, steps))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def newest(run: Path) -> Checkpoint:
    found = Checkpoint.newest(run / "training" / "base" / "checkpoints")
    assert found is not None
    return found


def rewritten(index: Path, folder: Path, caption: str) -> Path:
    """A copy of an index in which every caption is another."""
    table = pq.read_table(index)
    column = table.schema.get_field_index("caption")
    captions = pa.array([f"{caption} {row}" for row in range(len(table))], table.schema.field(column).type)
    path = index.with_name(f"{folder.name}.parquet")  # paths in the index are relative to its folder
    pq.write_table(table.set_column(column, table.schema.field(column), captions), path)
    return path


REFUSED = {
    "normalisation": ("model.diffusion.normalize_latents", "true -> false"),
    "noise schedule": ("model.diffusion.zero_terminal_snr", "true -> false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_fit_command_refuses_a_change_that_breaks_the_model(name: str, run: Path, walt: Walt, painted: Path) -> None:
    key, values = REFUSED[name]
    before = newest(run)
    done = walt("fit", *arguments("base", run, painted, *LONGER), f"--{key}", "false", check=False)
    assert done.code == 1 and f"{before.path} is of a model that the changes break: {key} {values} (" in done.said
    assert "add --allow_changed true to go on all the same" in done.said and "Traceback" not in done.said
    assert newest(run) == before


def test_fit_command_goes_on_with_what_is_allowed_and_lists_every_change(run: Path, walt: Walt, painted: Path) -> None:
    changed = ["--model.diffusion.normalize_latents", "false", "--allow-changed", "true", "--model.seed", "1", "--ema.decay", "0"]
    changed += ["--trainer.precision", "bf16-mixed", "--data.videos_per_batch", "4", "--model.optimizer.lr", "1e-4"]
    changed += ["--previews.every_n_validations", "7", "--trainer.log_every_n_steps", "3", "--data.num_workers", "1"]
    said = walt("fit", *arguments("base", run, painted, *LONGER), *changed).said
    (line,) = [line for line in said.splitlines() if line.startswith("changed since step 2: ")]
    for told in (
        "data.videos_per_batch 2 -> 4 (the order continues, in other batches)",
        "ema.decay 0.995 -> 0.0 (another average; 0 is none",
        "model.diffusion.normalize_latents true -> false (",
        "-> 0.0001 (from here on, with the moments of before)",
        "model.seed 0 -> 1 (not the noise of before)",
        "trainer.precision 32-true -> bf16-mixed (numbers are rounded otherwise)",
    ):
        assert told in line
    assert line.count(" -> ") == 6, "workers, lines and previews change no result"
    (warning,) = [line for line in said.splitlines() if "this is not the training that was interrupted" in line]
    assert warning.startswith("warning: from step 2 on") and "model.seed" in warning and "optimizer" not in warning
    again = walt("fit", *arguments("base", run, painted, *SHORT, "4"), *changed).said
    assert "changed since" not in again and "not the training" not in again, "the new checkpoint has the new values"


def test_fit_command_that_goes_on_unchanged_says_nothing(run: Path, walt: Walt, painted: Path) -> None:
    said = walt("fit", *arguments("base", run, painted, *LONGER)).said
    assert "going on from" in said and "changed since" not in said and "warning" not in said and "vocabulary" not in said
    recorded = read_task(read_state(newest(run).state), "there")
    assert recorded is not None and recorded["parents.vae"] == load(run / "vae").sha256
    assert recorded["model.text.width"] == 96 and recorded["trainer.ranks"] == 1 and "data.num_workers" not in recorded


@pytest.mark.parametrize("removed", [False, True])
def test_fit_command_keeps_the_vocabulary_of_the_checkpoint_when_captions_are_replaced(
    removed: bool, run: Path, walt: Walt, painted: Path, tmp_path: Path
) -> None:
    file = run / "training" / "base" / VOCABULARY
    before = file.read_bytes()
    if removed:
        file.unlink()
    index = rewritten(painted, tmp_path, "zebra quilt")
    said = walt("fit", *arguments("base", run, index, *LONGER)).said
    assert "changed since step 2: data.index_sha256 " in said and "(other clips, captions or labels)" in said
    assert "the vocabulary stays that of the checkpoint; the training captions would now give another" in said
    assert (f"{file} was missing: written again from the checkpoint" in said) == removed
    artifact = load(run / "base")
    assert file.read_bytes() == before == artifact.read(VOCABULARY)
    assert {"zebra", "red"} <= set(artifact.read("words.txt").decode().split()), "words of both trainings"


def test_fit_command_refuses_an_edited_vocabulary_and_replaces_it_if_that_is_allowed(run: Path, walt: Walt, painted: Path) -> None:
    file = run / "training" / "base" / VOCABULARY
    before = file.read_bytes()
    file.write_bytes(before.replace(b"circle", b"cirque") + b"\x00")
    command = arguments("base", run, painted, *LONGER)
    done = walt("fit", *command, check=False)
    assert done.code == 1 and "tokenizer.model " in done.said and "edited in the run's folder" in done.said
    said = walt("fit", *command, "--allow_changed", "true").said
    assert f"{file} was another vocabulary: replaced by that of the checkpoint" in said
    assert file.read_bytes() == before == load(run / "base").read(VOCABULARY)


def test_validate_command_leaves_the_vocabulary_of_a_run_alone(run: Path, walt: Walt, painted: Path) -> None:
    file = run / "training" / "base" / VOCABULARY
    file.write_bytes(b"mine")
    walt("validate", *arguments("base", run, painted, *LONGER), "--data.val_videos", "2", "--init", str(run / "base"))
    assert file.read_bytes() == b"mine"


def test_fit_command_goes_on_from_an_older_checkpoint_and_says_that_changes_cannot_be_told(
    run: Path, walt: Walt, painted: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.ckpt"
    torch.save({key: value for key, value in read_state(newest(run).state).items() if key != TASK}, old)
    said = walt("fit", *arguments("base", run, painted, *LONGER), "--ckpt_path", str(old), "--model.seed", "1").said
    assert f"warning: {old} has no record of its task, as older versions wrote: changes since then cannot be told" in said
    assert "changed since" not in said


def test_fit_command_refuses_another_parent_of_a_checkpoint_that_is_named(run: Path, walt: Walt, painted: Path, tmp_path: Path) -> None:
    """The automatic resume of an interrupted stage is refused before that, see test_program.py."""
    other, state = tmp_path / "other.ckpt", read_state(newest(run).state)
    values = read_task(state, "there")
    torch.save({**state, TASK: encode_task({**(values or {}), "parents.vae": "ab" * 32})}, other)
    done = walt("fit", *arguments("base", run, painted, *LONGER), "--ckpt_path", str(other), check=False)
    now = load(run / "vae").sha256[:12]
    assert done.code == 1 and f"parents.vae abababababab -> {now} (the weights were trained with another parent)" in done.said


def test_fit_command_refuses_another_width_always(run: Path, walt: Walt, painted: Path) -> None:
    command = [*arguments("base", run, painted, *LONGER), "--model.denoiser.width", "64", "--allow_changed", "true"]
    done = walt("fit", *command, check=False)
    assert done.code == 1 and "model.denoiser.width 32 in place of 64" in done.said
