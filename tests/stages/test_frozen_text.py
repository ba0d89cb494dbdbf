"""A frozen text encoder from training to sampling: out of parameters and artifact, known by its bytes."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from stages.base import BaseStage
from tests.helpers.environment import ROOT, Walt
from tests.stages.test_stages import SMALL, sgd
from walt_pl.data.index import Index
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact import load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.checkpoint import read_state
from walt_pl.runs.manifest import Manifest
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.text.features import encoder_sha256
from walt_pl.text.small_encoder import PretrainedTextConfig

EXPERIMENT = ROOT / "experiments" / "shapes"
SIZE = {"width": 32, "depth": 2, "num_heads": 2, "text_width": 16}
DENOISER = [word for name, value in SIZE.items() for word in (f"--model.denoiser.{name}", str(value))]
TWO_STEPS = [
    *["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--model.warmup_steps", "1", "--data.val_videos", "2"],
    *["--data.videos_per_batch", "2", "--data.image_stacks_per_batch", "1", "--trainer.precision", "32-true"],
]


def fit(walt: Walt, stage: str, run: Path, painted: Path, *more: str, check: bool = True) -> str:
    config = ["--config", str(EXPERIMENT / f"{stage}.yaml"), "--run", str(run), "--data.index", str(painted)]
    done = walt("fit", *config, *DENOISER, *TWO_STEPS, *more, check=check)
    return done.said


@pytest.fixture(scope="module")
def config(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainedTextConfig:
    """The tiny T5 in a folder that may be moved."""
    folder = tmp_path_factory.mktemp("encoders") / "t5"
    shutil.copytree(tiny_t5, folder)
    return PretrainedTextConfig("t5", str(folder), width=16, max_length=32)


@pytest.fixture(scope="module")
def run(walt: Walt, painted: Path, config: PretrainedTextConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that learnt nothing, and a base model trained two steps with the tiny T5."""
    run = tmp_path_factory.mktemp("runs") / "frozen"
    torch.manual_seed(0)
    vae = VAE(
        VAEConfig(
            width=8,
            channel_multipliers=(1, 1, 2),
            strides=((2, 2, 2), (2, 2, 2)),
            num_res_blocks=(0, 1, 1),
            num_middle_blocks=0,
            norm="layer",
        )
    )
    Manifest.open(run).start("vae", {})
    latents = {"mean": [0.0] * 8, "std": [1.0] * 8}
    save_artifact(run / "vae", kind="vae", models={"vae": vae}, sampling_config={}, card={"latents": latents}, train_config="")
    Manifest.open(run).finish("vae", run / "vae")
    fit(walt, "base", run, painted, "--model.text", "null", "--model.text", json.dumps(asdict(config)))
    return run


def test_frozen_text_encoder_is_not_in_the_module(config: PretrainedTextConfig) -> None:
    with_text = DenoiserConfig(**SMALL, text_width=16)  # type: ignore[arg-type]
    stage = BaseStage(with_text, sgd, text=config)
    assert {name.split(".")[0] for name, _ in stage.named_parameters()} == {"denoiser"}
    with pytest.raises(ValueError, match=r"text_width is 16, text\.width 8"):
        BaseStage(with_text, sgd, text=PretrainedTextConfig("t5", config.path, width=8))


def test_artifact_names_the_frozen_text_encoder_and_does_not_hold_it(run: Path, config: PretrainedTextConfig) -> None:
    artifact = load(run / "base", verify=True)
    assert list(artifact.models) == ["denoiser"]
    assert artifact.config["pretrained_text"] == {**asdict(config), "sha256": encoder_sha256(config)}
    last = read_state(run / "training" / "base" / "checkpoints" / "step=00000002" / "state.ckpt")
    assert {name.split(".")[0] for name in last["state_dict"]} == {"denoiser"}
    assert last["text_encoder"] == encoder_sha256(config)


def test_feature_cache_of_a_run_has_training_and_validation_captions(run: Path, painted: Path) -> None:
    from safetensors import safe_open

    [folder] = (run / "cache").glob("text-*")
    train, validation = Index(painted, "train"), Index(painted, "val")
    used = [*train.videos, *train.images, *validation.videos[:2], *validation.images[:2]]
    stored = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            stored += len(shard.get_tensor("sha256"))
    assert stored == len({entry.caption for entry in used})


def test_cascade_with_a_frozen_text_encoder_samples_on_another_machine(run: Path, config: PretrainedTextConfig, tmp_path: Path) -> None:
    folders = {"vae": run / "vae", "base": run / "base"}
    request = SampleRequest(prompts=["a plain red circle"], seeds=[1])
    here = Cascade(folders, dtype=torch.float32).sample(request, SamplingConfig(steps=2))["base"]
    assert bool(here.isfinite().all())
    moved = shutil.move(config.path, tmp_path / "elsewhere")
    try:
        with pytest.raises(ValueError, match=r"no folder .*t5.*--text-encoder PATH"):
            Cascade(folders)
        there = Cascade(folders, dtype=torch.float32, text_encoder=str(moved)).sample(request, SamplingConfig(steps=2))["base"]
    finally:
        shutil.move(moved, config.path)
    assert torch.equal(here, there)


def test_super_resolution_uses_the_frozen_text_encoder_of_its_base(walt: Walt, run: Path, painted: Path, tmp_path: Path) -> None:
    shards = {path.name for path in (run / "cache").glob("text-*/*.safetensors")}
    fit(walt, "sr1", run, painted)
    assert {path.name for path in (run / "cache").glob("text-*/*.safetensors")} == shards, "the base's features serve again"
    out = str(tmp_path / "clip.mp4")
    walt("sample", "--run", str(run), "--prompt", "a plain red circle", "--steps", "1", "--out", out)
    assert Path(out).exists()


def test_fit_command_refuses_to_resume_with_another_text_encoder(
    walt: Walt, run: Path, painted: Path, config: PretrainedTextConfig
) -> None:
    file = Path(config.path) / "config.json"
    before, features = file.read_text(), set((run / "cache").glob("text-*/*"))
    file.write_text(before.replace("{", "{ ", 1))
    last = str(run / "training" / "base" / "checkpoints" / "step=00000002")
    try:
        said = fit(
            walt, "base", run, painted, "--model.text", "null", "--model.text", json.dumps(asdict(config)), "--ckpt_path", last, check=False
        )
    finally:
        file.write_text(before)
    assert "is not the one that training began with" in said
    assert set((run / "cache").glob("text-*/*")) == features, "it is said before the other encoder's features are computed"
    assert "Traceback" not in said
