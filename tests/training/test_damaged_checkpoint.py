"""The program goes on from the checkpoint before a damaged one, and names the damaged one; each promise where it is used."""

import shutil
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.checkpoint_files import describe_again, flip_bit, without_hashes
from tests.helpers.environment import ROOT
from tests.helpers.starts import fit, launch, start
from tests.helpers.training import arguments
from walt_pl.cli.checkpoint_folder import check_own_folder
from walt_pl.cli.export import export_checkpoint
from walt_pl.runs.checkpoint import Checkpoint, CheckpointError, read_state, write_state
from walt_pl.runs.manifest import Manifest
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.spike_guard import _last_good

CHECKPOINTS = Path("training") / "vae" / "checkpoints"
LAST = "step=00000004"


@pytest.fixture(scope="module")
def run(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of four steps with checkpoints of steps 2 and 4, the newest of which is damaged then."""
    run = tmp_path_factory.mktemp("run")
    fit(*command(run, painted, 4))
    flip_bit(run / CHECKPOINTS / LAST / "ema.safetensors", Random(1))
    return run


def command(run: Path, index: Path, steps: int, *more: str) -> list[str]:
    limits = ["--trainer.max_steps", str(steps), "--checkpoint.every_n_train_steps", "2", "--trainer.val_check_interval", "2"]
    return arguments("vae", run, index, *limits, "--model.statistics_batches", "1", *more)


@pytest.mark.parametrize("name", ["ema.safetensors", "state.ckpt"])
def test_fit_goes_on_from_the_checkpoint_before_a_damaged_one(run: Path, painted: Path, tmp_path: Path, name: str) -> None:
    """Two ranks take the choice of rank zero, which alone has read every byte. The older one is of format 2, without hashes."""
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / CHECKPOINTS
    if name == "state.ckpt":
        flip_bit(folder / LAST / "ema.safetensors", Random(1))  # the same bit again: it is whole
        flip_bit(folder / LAST / name, Random(1))
    without_hashes(folder / "step=00000002")
    ddp = ["--config", str(ROOT / "experiments/strategy/ddp.yaml"), "--trainer.devices", "2"]
    said = fit(*command(tmp_path / "run", painted, 6, *ddp), ranks=2)
    assert f"{LAST} is damaged: the bytes of {name} have changed since they were written" in said
    assert "step=00000002 has no hashes, since an older program wrote it" in said
    assert f"going on from {folder / 'step=00000002'}" in said
    assert [(one.step, one.world_size) for one in Checkpoint.all(folder)] == [(4, 2), (6, 2)]
    assert Checkpoint.newest(folder, hashed=True) == Checkpoint.at(folder / "step=00000006"), "both are hashed"


@pytest.mark.parametrize("name", [LAST, f"{LAST}/state.ckpt"])
def test_fit_refuses_a_damaged_checkpoint_that_was_named(run: Path, painted: Path, name: str) -> None:
    refused = start("fit", *command(run, painted, 6, "--ckpt_path", str(run / CHECKPOINTS / name)))
    assert refused.wait() == 1
    assert f"{LAST} is damaged: the bytes of ema.safetensors have changed" in refused.said and "Traceback" not in refused.said
    assert (run / CHECKPOINTS / LAST).exists()


def test_checkpoints_takes_the_earlier_checkpoint_of_rank_zero(run: Path) -> None:
    folder = run / CHECKPOINTS
    writer = Checkpoints(str(folder))
    strategy = SimpleNamespace(broadcast=lambda _: 2, checkpoint_io=None)
    trainer: Any = SimpleNamespace(strategy=strategy, ckpt_path=str(folder / LAST / "state.ckpt"), callbacks=[], global_rank=1)
    writer.setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert trainer.ckpt_path == str(folder / "step=00000002" / "state.ckpt")
    assert strategy.checkpoint_io.load_checkpoint(folder / LAST / "state.ckpt")["global_step"] == 2
    assert writer._start is not None and writer._start.step == 2


def test_spike_guard_rolls_back_to_the_checkpoint_before_a_damaged_one(run: Path) -> None:
    writer = Checkpoints(str(run / CHECKPOINTS), every_n_train_steps=2)
    with pytest.warns(UserWarning, match=rf"skipped: .*{LAST} is damaged"):
        good = _last_good(SimpleNamespace(callbacks=[writer], global_step=5))  # type: ignore[arg-type]
    assert good is not None and good.step == 2


def begin(run: Path) -> None:
    """Begin a training, and end without a word to the manifest, as after a kill."""
    Manifest.open(run).start("vae", {})


def test_fit_starts_over_only_when_asked_if_every_checkpoint_is_damaged(run: Path, painted: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    flip_bit(tmp_path / "run" / CHECKPOINTS / "step=00000002" / "state.ckpt", Random(1))
    launch(begin, tmp_path / "run").wait()
    refused = start("fit", *command(tmp_path / "run", painted, 6))
    assert refused.wait() == 1
    assert "no whole checkpoint to go on from, only step=00000002, step=00000004, each incomplete or damaged" in refused.said
    assert len(list((tmp_path / "run" / CHECKPOINTS).iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_fit_and_export_refuse_a_weight_that_is_no_floating_point_number(
    dtype: torch.dtype, run: Path, painted: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(run / CHECKPOINTS / "step=00000002", tmp_path / "step=00000002")
    state = read_state(changed / "state.ckpt")
    name = next(name for name in state["state_dict"] if name.startswith("vae.") and name.endswith("weight"))
    state["state_dict"][name] = state["state_dict"][name].to(dtype)
    write_state(state, changed / "state.ckpt")
    describe_again(changed)
    wanted = rf"the weight {name.removeprefix('vae.')} has values of type {dtype}, wanted floating-point numbers"
    with pytest.raises(CheckpointError, match=wanted):
        export_checkpoint(changed, tmp_path / "out", ema=False)
    refused = start("fit", *command(run, painted, 6, "--ckpt_path", str(changed)))
    assert refused.wait() == 1
    assert f"the weight {name} has values of type {dtype}, wanted floating-point numbers" in refused.said
    assert "Traceback" not in refused.said


def test_fit_refuses_a_checkpoint_folder_of_another_training(run: Path, painted: Path, tmp_path: Path) -> None:
    """Training removes checkpoints of later steps and keeps a few: those of another run must not be among them."""
    theirs = shutil.copytree(run / CHECKPOINTS, tmp_path / "theirs")
    named = ["--checkpoint.dirpath", str(theirs), "--from_scratch", "true"]
    refused = start("fit", *command(tmp_path / "mine", painted, 4, *named))
    assert refused.wait() == 1
    assert f'is not of stage "vae" of {tmp_path / "mine"}, and training would remove it; name another folder' in refused.said
    check_own_folder(theirs, tmp_path / "work", run, "vae")  # the run itself may have them elsewhere
    (tmp_path / "link").symlink_to(run)
    check_own_folder(theirs, tmp_path / "work", tmp_path / "link", "vae")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoints").symlink_to(theirs)
    check_own_folder(tmp_path / "work" / "checkpoints", tmp_path / "work", tmp_path / "renamed", "vae")
    with pytest.raises(ValueError, match='is not of stage "base"'):
        check_own_folder(theirs, tmp_path / "work", run, "base")
    flip_bit(theirs / LAST / "state.ckpt", Random(1))
    flip_bit(theirs / "step=00000002" / "state.ckpt", Random(1))
    check_own_folder(theirs, tmp_path / "work", run, "base")  # the start names what is damaged
    assert len(list(theirs.iterdir())) == 2
