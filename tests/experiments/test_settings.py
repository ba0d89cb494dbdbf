"""The experiments have the training settings of the paper's Table 8 (docs/METHOD.md, section 6)."""

import inspect
from typing import Any

import pytest
import yaml

from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from tests.helpers.environment import ROOT
from tests.helpers.experiments import EXPERIMENTS, of
from walt_pl.cli.config_files import extended_files
from walt_pl.diffusion.ddim import Guidance

ADAM, ADAMW, ADAFACTOR = "torch.optim.Adam", "torch.optim.AdamW", "timm.optim.AdafactorBigVision"
PUBLISHED: dict[str, tuple[str, float, str, float]] = {
    "imagenet/vae": (ADAM, 1e-4, "cosine", 0.999),
    "ucf101/vae": (ADAM, 1e-4, "cosine", 0.999),
    "kinetics600/vae": (ADAM, 1e-4, "cosine", 0.999),
    "text_to_video/vae": (ADAM, 1e-4, "cosine", 0.999),
    "imagenet/base": (ADAMW, 5e-4, "cosine", 0.9999),
    "ucf101/base_l": (ADAMW, 5e-4, "cosine", 0.9999),
    "ucf101/base_xl": (ADAMW, 5e-4, "cosine", 0.9999),
    "kinetics600/base": (ADAMW, 5e-4, "cosine", 0.9999),
    "text_to_video/base": (ADAFACTOR, 2e-4, "cosine", 0.0),
    "text_to_video/base_9x16": (ADAFACTOR, 5e-5, "constant", 0.0),
    "text_to_video/sr1": (ADAFACTOR, 5e-4, "cosine", 0.0),
    "text_to_video/sr2": (ADAFACTOR, 5e-4, "cosine", 0.0),
}
"""Optimiser, rate, decay and EMA of each configuration."""


def merged(over: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(over[key], under[key]) for key in over.keys() & under.keys() if isinstance(over[key], dict)}
    return under | over | both


def settings(name: str) -> dict[str, Any]:
    """The keys of a configuration and of the files it lies over."""
    file = ROOT / "experiments" / f"{name}.yaml"
    found: dict[str, Any] = {}
    for path in [*extended_files(file), file]:
        found = merged(yaml.safe_load(path.read_text(encoding="utf-8")), found)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiment_has_the_published_optimizer_rate_decay_and_ema(name: str) -> None:
    config = settings(name)
    optimizer, rate, decay, ema = PUBLISHED[name]
    model = config["model"]["init_args"]
    found = model["optimizer"]
    assert (found["class_path"], found["init_args"]["lr"]) == (optimizer, rate)
    if optimizer == ADAM:
        assert found["init_args"]["betas"] == [0.0, 0.99]
    stage = VAEStage if name.endswith("vae") else LatentDiffusion
    default = inspect.signature(stage).parameters["lr_schedule"].default
    assert model.get("lr_schedule", default) == decay and config["ema"]["decay"] == ema


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("vae")])
def test_experiment_kl_weight_is_one_millionth(name: str) -> None:
    default = inspect.signature(VAEStage).parameters["kl_weight"].default
    assert settings(name)["model"]["init_args"].get("kl_weight", default) == 1e-6


@pytest.mark.parametrize(
    "name, size, patch, window",
    [
        ("text_to_video/base", [5, 16, 16], 1, [5, 8, 8]),
        ("text_to_video/base_9x16", [5, 16, 28], 1, [5, 8, 14]),
        ("text_to_video/sr1", [5, 32, 56], 2, [5, 8, 14]),
        ("text_to_video/sr2", [5, 64, 112], 4, [5, 8, 14]),
        ("imagenet/base", [1, 32, 32], 1, [1, 32, 32]),
    ],
)
def test_experiment_of_another_aspect_scales_its_windows(name: str, size: list[int], patch: int, window: list[int]) -> None:
    denoiser = settings(name)["model"]["init_args"]["denoiser"]
    assert (denoiser["size"], denoiser.get("patch_size", 1), denoiser["window_size"]) == (size, patch, window)


def test_experiment_of_kinetics_always_gets_two_context_frames_and_text_to_video_sometimes() -> None:
    kinetics = settings("kinetics600/base")["model"]["init_args"]
    assert (kinetics["denoiser"]["frame_prediction"], kinetics["diffusion"]["context_frames"]) == (1.0, [2])
    video = settings("text_to_video/base")["model"]["init_args"]
    assert video["denoiser"]["frame_prediction"] == 0.1 and "context_frames" not in video["diffusion"]


def test_experiment_of_super_resolution_noises_up_to_350_with_the_text_encoder_of_its_base() -> None:
    assert settings("text_to_video/sr1")["model"]["init_args"]["diffusion"]["noise_aug_max"] == 350
    text = settings("text_to_video/base")["model"]["init_args"]["text"]
    assert (text["kind"], text["path"], text["width"]) == ("t5", "google/t5-v1_1-xl", 2048)
    assert settings("text_to_video/sr1")["model"]["init_args"]["denoiser"]["text_width"] == 2048


# docs/METHOD.md, section 6.1: steps, or passes over a set of so many clips in batches of so many (UCF-101 has 9,537
# training clips, Kinetics-600 392,622, ImageNet 1,281,167 pictures).
DURATIONS: list[tuple[str, float]] = [
    ("imagenet/vae", 270 * 1_281_167 / 256),
    ("imagenet/base", 350 * 1_281_167 / 1024),
    ("ucf101/vae", 2000 * 9_537 / 256),
    ("ucf101/base_l", 60_000),
    *((f"ucf101/rank_{rank}", 35_000) for rank in (4, 16, 64, 256)),
    ("kinetics600/vae", 270_000),
    ("kinetics600/base", 360 * 392_622 / 512),
    ("text_to_video/vae", 1_000_000),
    ("text_to_video/base", 550_000),
    ("text_to_video/sr1", 675_000),
    ("text_to_video/sr2", 275_000),
]


@pytest.mark.parametrize(("config", "steps"), DURATIONS)
def test_experiment_trains_for_the_published_number_of_steps(config: str, steps: float) -> None:
    assert yaml.safe_load((EXPERIMENTS / f"{config}.yaml").read_text())["trainer"]["max_steps"] == pytest.approx(steps, abs=1)


@pytest.mark.parametrize(
    ("config", "guidance"),
    [
        ("text_to_video/base", Guidance(7.5, rescale=0.7)),
        ("text_to_video/base_l", Guidance(7.5, rescale=0.7)),
        ("text_to_video/base_9x16", Guidance(7.5, rescale=0.7)),
        ("text_to_video/sr1", Guidance(3.0, rescale=0.7)),
        ("text_to_video/sr2", Guidance(3.0, rescale=0.7)),
        ("shapes/base", Guidance(2.0)),
        ("shapes/sr1", Guidance()),
        ("imagenet/base", Guidance()),
        ("kinetics600/base", Guidance()),
        ("ucf101/base_l", Guidance()),
        ("ucf101/base_xl", Guidance()),
    ],
)
def test_experiment_guidance_is_on_where_table_8_has_it(config: str, guidance: Guidance) -> None:
    assert of(config).model.diffusion.guidance == guidance


@pytest.mark.parametrize("stage", ["vae", "base", "base_l", "base_9x16", "sr1", "sr2"])
def test_experiment_text_to_video_reads_8_frames_a_second(stage: str) -> None:
    assert of(f"text_to_video/{stage}").datamodule.clip_transform.fps == 8


def test_experiment_clips_predicts_frames_of_64_px_and_doubles_them_without_captions() -> None:
    vae, base, sr1 = (of(f"clips/{stage}") for stage in ("vae", "base", "sr1"))
    factors = vae.model.vae.factors
    for plan, size in ((base, 64), (sr1, 128)):
        transform, denoiser = plan.datamodule.clip_transform, plan.model.denoiser.config
        assert (transform.size, transform.frames, transform.fps) == (size, 17, vae.datamodule.clip_transform.fps)
        assert denoiser.size == (1 + 16 // factors[0], size // factors[1], size // factors[2]) and denoiser.text_width is None
    assert sr1.datamodule.clip_transform.low_res_size == base.datamodule.clip_transform.size
    assert (base.model.denoiser.config.frame_prediction, base.model.diffusion.context_frames) == (1.0, (1, 2))
