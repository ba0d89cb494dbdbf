"""The overlays of experiments/strategy through the real command line, and what it says to those who ask for what cannot be."""

import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checkpoint_files import flip_bit
from tests.helpers.environment import ROOT
from tests.helpers.starts import fit
from tests.helpers.training import ADAMW, DENOISER
from walt_pl.cli.plan import PlanCLI
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.training.strategies.zero import ZeROStrategy

SMALL = {
    "vae": [
        *[
            "--model.vae.width",
            "8",
            "--model.vae.channel_multipliers",
            "[1, 1, 2]",
            "--data.crop",
            "16",
            "--data.size",
            "32",
            "--data.sizes",
            "[]",
        ],
        *["--model.discriminator", "{width: 8, channel_multipliers: [2, 2], size: [16, 16]}"],
    ],
    "base": [*DENOISER, *ADAMW],  # Muon looks at shapes
    "sr1": [*DENOISER, *ADAMW],
}


def command(stage: str, run: Path, painted: Path, *more: str) -> list[str]:
    return [
        *["--config", str(ROOT / "experiments" / "shapes" / f"{stage}.yaml"), "--run", str(run), "--data.index", str(painted)],
        *[*SMALL[stage], "--model.warmup_steps", "1", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"],
        *["--data.videos_per_batch", "2", "--data.image_stacks_per_batch", "2", "--data.images_per_stack", "1", "--data.val_videos", "4"],
        *["--data.num_workers", "0", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu", *more],
    ]


def overlay(name: str) -> list[str]:
    return ["--config", str(ROOT / "experiments" / "strategy" / f"{name}.yaml")]


@pytest.fixture(scope="module")
def run(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that two ranks trained, and the base that one process did."""
    run = tmp_path_factory.mktemp("strategies") / "run"
    fit(*command("vae", run, painted, *overlay("ddp"), "--trainer.devices", "2"), ranks=2)
    fit(*command("base", run, painted, "--trainer.devices", "1"))
    return run


def train(run: Path, painted: Path, folder: Path, stage: str, name: str) -> Path:
    shutil.copytree(run, folder / name)
    fit(*command(stage, folder / name, painted, *overlay(name), "--trainer.devices", "2", "--from_scratch", "true"), ranks=2)
    return folder / name


@pytest.mark.parametrize("name", ["zero1", "zero2_offload", "zero3"])
def test_zero_strategy_base_artifact_equals_that_of_one_process(run: Path, painted: Path, tmp_path: Path, name: str) -> None:
    """Validated and shown with its averages, and whole in the artifact, which loads without DeepSpeed."""
    sharded = train(run, painted, tmp_path, "base", name)
    weights = [load_file(folder / "base" / "model.safetensors") for folder in (sharded, run)]
    assert set(weights[0]) == set(weights[1])
    for key, wanted in weights[1].items():
        assert weights[0][key].dtype == torch.float32
        assert torch.allclose(weights[0][key], wanted, atol=1e-5), key
    assert load(sharded / "base", verify=True).card["steps"] == 2
    checkpoint = Checkpoint.newest(sharded / "training" / "base" / "checkpoints")
    assert checkpoint is not None and (checkpoint.strategy, checkpoint.world_size) == (name[:5], 2)
    assert "previews/samples" in (next((sharded / "training" / "base" / "logs").rglob("events*"))).read_bytes().decode("latin1")


def test_zero_strategy_goes_on_from_the_checkpoint_before_a_damaged_shard(run: Path, painted: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    sharded = [*overlay("zero2"), "--trainer.devices", "2", "--checkpoint.every_n_train_steps", "1"]
    fit(*command("base", tmp_path / "run", painted, *sharded, "--from_scratch", "true"), ranks=2)
    folder = tmp_path / "run" / "training" / "base" / "checkpoints"
    (shard,) = (folder / "step=00000002").rglob("*zero_pp_rank_1_mp_rank_00_optim_states.pt")
    flip_bit(shard, Random(1))
    said = fit(*command("base", tmp_path / "run", painted, *sharded, "--trainer.max_steps", "3"), ranks=2)
    assert f"step=00000002 is damaged: the bytes of state.ckpt/checkpoint/{shard.name} have changed since they were written" in said
    assert f"going on from {folder / 'step=00000001'}" in said
    newest = Checkpoint.newest(folder, hashed=True)
    assert newest is not None and newest.step == 3


def test_zero_strategy_trains_super_resolution_beside_frozen_networks(run: Path, painted: Path, tmp_path: Path) -> None:
    sharded = train(run, painted, tmp_path, "sr1", "zero2")
    assert set(load(sharded / "sr1").models) == {"denoiser"}


def test_zero_strategy_second_process_is_started_by_lightning(run: Path, painted: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    fit = command("base", tmp_path / "run", painted, *overlay("zero2"), "--trainer.devices", "2", "--from_scratch", "true")
    # Not a fork as in the other tests: Lightning types this process's own command again.
    subprocess.run([sys.executable, "-m", "walt_pl", "fit", *fit], cwd=ROOT, check=True, timeout=300)
    checkpoint = Checkpoint.newest(tmp_path / "run" / "training" / "base" / "checkpoints")
    assert checkpoint is not None and (checkpoint.strategy, checkpoint.world_size, checkpoint.step) == ("zero2", 2, 2)


@pytest.mark.parametrize(
    "config, more, said",
    [
        ("shapes/vae", ["--config", "experiments/strategy/zero2.yaml"], "DeepSpeed takes one optimiser, the autoencoder .* two"),
        ("shapes/vae", ["--trainer.strategy", "deepspeed_stage_2"], "DeepSpeed takes one optimiser, the autoencoder .* two"),
        ("shapes/base", ["--trainer.strategy", "zero2"], "no strategy 'zero2'.*--config experiments/strategy/NAME.yaml .*zero2"),
        ("shapes/base", ["--trainer.strategy", "deepspeed_stage_3"], "--config experiments/strategy/NAME.yaml .*zero3"),
        ("text_to_video/base", ["--config", "experiments/strategy/zero3.yaml"], "flattens the weights.*AdafactorBigVision.*adamw.yaml"),
        ("shapes/base", ["--trainer.gradient_clip_val", "0.5"], "--model.gradient_clip_val 0.5"),
        ("shapes/vae", ["--trainer.precision", "16-mixed"], "cannot share a gradient scaler"),
    ],
)
def test_check_engine_names_an_impossible_strategy_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, config: str, more: list[str], said: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=said):
        PlanCLI(["--config", f"experiments/{config}.yaml", *more])


@pytest.mark.parametrize(
    "more, strategy",
    [
        (["--trainer.devices", "2"], "auto"),
        (["--trainer.devices", "1", "--trainer.num_nodes", "2"], "auto"),
        (["--trainer.devices", "2", *overlay("ddp")], "ddp"),
    ],
)
def test_check_engine_lets_no_ddp_search_for_unused_weights(monkeypatch: pytest.MonkeyPatch, more: list[str], strategy: str) -> None:
    """Lightning's "auto" is plain DDP where there are several processes."""
    monkeypatch.chdir(ROOT)
    assert PlanCLI(["--config", "experiments/shapes/vae.yaml", *more]).options.trainer.strategy == strategy


def test_zero_strategy_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match=r"DeepSpeed, which is not installed; type: make setup"):
        ZeROStrategy(2)


def test_zero_strategy_refuses_offload_at_stage_3() -> None:
    with pytest.raises(ValueError, match="stages 1 and 2"):
        ZeROStrategy(3, offload=True)


def test_main_starts_without_importing_deepspeed() -> None:
    check = "import sys, walt_pl.cli.main; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
