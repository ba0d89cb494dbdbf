"""Checkpoints of the program made artifacts (those of every engine: tests/callbacks/test_guard.py)."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.starts import fit
from tests.test_resume import arguments
from walt_pl import cli
from walt_pl.artifact import ArtifactError, load
from walt_pl.checkpoint import CheckpointError, UnsafePickle
from walt_pl.export import export_checkpoint

# Not where the critic begins: there the guard begins anew.
SPOIL = "[{class_path: tests.callbacks.guarding.Spoil, init_args: {factors: {5: 1.0e+4}}}]"


@pytest.fixture(scope="module")
def run(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of six steps with its critic, one step spoilt, and a checkpoint after four."""
    run = tmp_path_factory.mktemp("run")
    index = shutil.copytree(painted.parent, run / "data") / painted.name
    guard = ["--guard.window", "8", "--guard.deviations", "20", "--trainer.callbacks", SPOIL]
    steps = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "6", "--checkpoint.every_steps", "4"]
    fit(*arguments("vae", run, index, *steps, *guard, "--model.statistics_batches", "3", "--data.videos_per_batch", "4"))
    return run


def checkpoints(run: Path) -> Path:
    return run / "training" / "vae" / "checkpoints"


def test_the_command_makes_the_artifact_that_the_training_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["walt_pl", "export", str(checkpoints(run)), "--out", str(tmp_path / "out")])
    cli.main()
    left, made = load(run / "vae"), load(tmp_path / "out", verify=True)
    said = capsys.readouterr().out
    assert f"averaged weights of step 6 (single, 1 ranks), sha256 {left.sha256[:12]}" in said
    assert (made.card["files"], made.config) == (left.card["files"], left.config)
    assert made.card["latents"] == left.card["latents"]
    x = torch.randn(1, 3, 5, 16, 16)
    assert torch.equal(made.models["vae"].encode(x).mean, left.models["vae"].encode(x).mean)  # type: ignore[operator]


def test_an_older_checkpoint_and_raw_weights_are_others(run: Path, tmp_path: Path) -> None:
    older, old = export_checkpoint(checkpoints(run) / "step=00000004", tmp_path / "older")
    newest, raw = export_checkpoint(checkpoints(run), tmp_path / "raw", ema=False)
    assert (older.step, newest.step) == (4, 6)
    assert len({old, raw, load(run / "vae").sha256}) == 3
    assert load(tmp_path / "older").card["samples"] == 4 * 6


def test_a_checkpoint_that_was_carried_away_is_exported_without_its_data(run: Path, tmp_path: Path) -> None:
    away = shutil.copytree(checkpoints(run), tmp_path / "away")
    shutil.move(run / "data", run / "elsewhere")
    try:
        with pytest.warns(UserWarning, match="no latent statistics, which are measured on the training data"):
            _, sha256 = export_checkpoint(away, tmp_path / "out")
    finally:
        shutil.move(run / "elsewhere", run / "data")
    assert sha256 == load(run / "vae").sha256 and load(tmp_path / "out").card["latents"] is None


def test_what_cannot_be_exported_is_said_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no whole checkpoint; name a folder such as"):
        export_checkpoint(tmp_path, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ArtifactError, match=r"thesis.txt"):
        export_checkpoint(checkpoints(run), tmp_path / "mine")
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("strategy", ["single", "zero2"])
def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_of_it_runs(strategy: str, tmp_path: Path) -> None:
    folder, trace = tmp_path / "step=00000001", tmp_path / "ran"
    state = folder / "state.ckpt"
    if strategy == "single":
        folder.mkdir()
        files = [state]
    else:
        (state / "checkpoint").mkdir(parents=True)
        (state / "latest").write_text("checkpoint")
        files = [state / "checkpoint" / name for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")]
        torch.save({}, files[0])
    torch.save({"state_dict": Bomb(trace)}, files[-1])
    card = {"format": 1, "step": 1, "samples": 1, "strategy": strategy, "world_size": 1, "files": {}}
    (folder / "checkpoint.json").write_text(json.dumps(card))
    with pytest.raises(UnsafePickle, match="is refused"):
        export_checkpoint(folder, tmp_path / "out")
    assert not trace.exists() and not (tmp_path / "out").exists()


def test_the_guard_of_the_program_leaves_its_incidents_with_the_training(run: Path) -> None:
    (file,) = (run / "training" / "vae" / "incidents").iterdir()
    incident = json.loads(file.read_text())
    assert (file.name, incident["step"], incident["action"]) == ("step=00000005.json", 5, "skipped")
    assert all(Path(clip["path"]).exists() for rank in incident["ranks"] for batch in rank["files"] for clip in batch)
