"""Configurations as their first lines document them, and what the plan says of them."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from timm.optim.adafactor_bv import AdafactorBigVision
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from datamodules.joint import JointData
from stages.base import BaseStage
from stages.latent_diffusion import LatentDiffusion
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.conftest import ROOT
from walt_pl.blocks.frames import Layout
from walt_pl.cli.config_files import beneath
from walt_pl.cli.fit import Program
from walt_pl.cli.plan import BUCKET, USABLE, Plan, Share, autoencoder_cost, diffusion_cost, engine_bytes, moment_bytes
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.ddim import Guidance
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.discriminator import DiscriminatorConfig
from walt_pl.models.vae import VAEConfig

EXPERIMENTS = ROOT / "experiments"
OURS = ("clips", "common", "imagenet", "kinetics600", "shapes", "strategy", "text_to_video", "ucf101")
"""Experiments that come with the program; whoever adds one of their own promises nothing."""
FILES = sorted(path for name in OURS for path in (EXPERIMENTS / name).rglob("*.yaml"))


def planned(*arguments: str) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["walt_pl plan", *arguments])
        patch.chdir(ROOT)
        return Plan()


def of(name: str, overlay: str | None = None, *more: str) -> Plan:
    configs = [name, overlay] if overlay else [name]
    return planned(*(word for config in configs for word in ("--config", f"experiments/{config}.yaml")), *more)


# ---- Configurations --------------------------------------------------------------------------------------------------


def opening(config: Path) -> str:
    lines = config.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def documented(config: Path) -> list[str]:
    """The commands that the first lines of a file give."""
    return re.findall(r"^# (make train-(?:vae|base|sr)(?: \w+=(?:\"[^\"]*\"|\w+))*)", opening(config), re.MULTILINE)


def typed(command: str) -> list[list[str]]:
    """What `make` would run: the arguments of each `fit`."""
    said = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line.split("walt_pl fit", 1)[1]) for line in said.splitlines() if "walt_pl fit" in line]


COMMANDS = sorted({command for config in FILES for command in documented(config)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_parses_and_builds(command: str) -> None:
    assert typed(command)
    for arguments in typed(command):
        plan = planned(*arguments)
        assert plan.parameters()["total"] > 0
        assert plan.stage in " ".join(arguments)


def test_every_file_is_part_of_a_documented_command() -> None:
    used: set[Path] = set()
    for command in COMMANDS:
        for arguments in typed(command):
            configs = [ROOT / name for word, name in itertools.pairwise(arguments) if word == "--config"]
            used |= {path.resolve() for path in [*configs, *beneath(configs[0])]}
    assert set(FILES) - used == set()


def test_a_run_of_its_own_gets_its_autoencoder_by_what_is_documented() -> None:
    """It is trained there, or named."""
    alone = [(command, match[1]) for command in COMMANDS if (match := re.search(r"--run ([\w/]+)", command))]
    trained = {run for command, run in alone if command.startswith("make train-vae")}
    assert len(alone) == 12 and len(trained) == 1
    assert not [command for command, run in alone if run not in trained and " --model.vae runs/shapes/vae" not in command]


@pytest.mark.parametrize("target", ["plan", "cache"])
def test_make_plans_the_stage_that_there_is_on_the_devices_that_were_asked_for(target: str) -> None:
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "-n", target, "EXP=ucf101", *words], cwd=ROOT, capture_output=True, text=True, check=False)

    said = make("STAGE=base_xl", "DEVICES=4", "NODES=1").stdout
    assert "--config experiments/ucf101/base_xl.yaml" in said
    if target == "plan":  # a cache is computed by one process
        (line,) = [line for line in said.splitlines() if "walt_pl plan" in line]
        assert planned(*shlex.split(line.split("walt_pl plan", 1)[1])).gpus == 4
    refused = make("STAGE=typo")
    assert refused.returncode and "no experiments/ucf101/typo.yaml; there are: base_l " in refused.stderr


def test_an_overlay_in_the_place_of_a_stage_is_named(tmp_path: Path) -> None:
    wanted = (
        r'unknown stage "rank_16", the name of the first --config: wanted vae, vae_\*, base, base_\*, sr1, sr2, ...; '
        r"an overlay comes second \(--config STAGE.yaml --config rank_16.yaml\), or give --stage NAME"
    )
    with pytest.raises(ValueError, match=wanted):
        planned("--config", "experiments/ucf101/rank_16.yaml", "--config", "experiments/ucf101/base_l.yaml")
    mine = tmp_path / "mine.yaml"  # any name will do where the stage is said
    mine.write_text(f"over: [{EXPERIMENTS}/ucf101/base_l.yaml]\n")
    assert planned("--config", str(mine), "--stage", "base_mine").stage == "base_mine"
    mine.write_text(f"over: [{EXPERIMENTS}/ucf101/base_l.yaml]\nstage: base_mine\n")
    assert planned("--config", str(mine)).stage == "base_mine"


RUN = {"shapes": "Reached", "clips": "Reached", "ablations": "see docs/ablations.md"}
"""What was run, by folder, and the words for it; everything else says that it was not."""


@pytest.mark.parametrize("config", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_file_opens_with_its_promise(config: Path) -> None:
    text = opening(config)
    if not documented(config):
        assert "No stage of its own" in text
    else:
        assert RUN.get(config.parent.name, "ot yet run") in text, "what it reached, or that nobody knows"


def test_a_file_lies_over_those_it_names_and_a_further_config_over_that(tmp_path: Path) -> None:
    small = {"width": 16, "layers": 2, "heads": 2, "size": [3, 4, 4], "window": [3, 2, 2]}
    model = {"class_path": "stages.base.BaseStage", "init_args": {"denoiser": small, "optimizer": {"class_path": "torch.optim.AdamW"}}}
    below = {"model": model, "data": {"index": "x.parquet", "size": 32}, "ema": {"decay": 0.5}}
    own = {"over": ["deep/below.yaml"], "model": {"init_args": {"denoiser": {"width": 32}}}, "ema": {"decay": 0.7}}
    (tmp_path / "deep").mkdir()
    for name, content in (("deep/below", below), ("base_x", own), ("overlay", {"model": {"init_args": {"denoiser": {"heads": 4}}}})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    plan = planned("--config", str(tmp_path / "base_x.yaml"), "--config", str(tmp_path / "overlay.yaml"))
    config = plan.model.denoiser.config
    assert (config.width, config.heads, config.layers, plan.options.ema.decay) == (32, 4, 2, 0.7)
    assert (plan.stage, plan.run_dir) == ("base_x", Path("runs") / tmp_path.name)
    (tmp_path / "deep/below.yaml").unlink()
    with pytest.raises(ValueError, match=r"base_x.yaml: over names deep/below.yaml, but there is no"):
        planned("--config", str(tmp_path / "base_x.yaml"))


def test_overlay_of_another_optimiser_keeps_the_rate_of_the_stage() -> None:
    optimizer = of("text_to_video/base", "text_to_video/adamw").options.model.init_args.optimizer
    assert (optimizer.class_path, optimizer.init_args.lr) == ("torch.optim.AdamW", 2e-4)


def test_a_wrong_key_gives_the_message_of_fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = ["--config", "experiments/shapes/base.yaml", "--model.denoiser.widht", "8"]
    said = []
    for program, arguments in ((Plan, wrong), (Program, ["fit", *wrong])):
        monkeypatch.setattr(sys, "argv", ["walt_pl", *arguments])
        with pytest.raises(SystemExit):
            program()
        said.append(capsys.readouterr().err.split("error:")[-1].strip())
    assert "widht" in said[0]
    assert said[0] == said[1].replace("fit.", "")


# ---- Parameters ------------------------------------------------------------------------------------------------------

# SPEC section 5.
PUBLISHED: list[tuple[str, str | None, float, float]] = [
    ("ucf101/base_l", None, 313e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_4", 314e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_16", 316e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_64", 324e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_256", 357e6, 0.01),
    ("ucf101/base_l_separate", None, 458e6, 0.01),
    ("ucf101/base_xl", None, 460e6, 0.01),
    ("kinetics600/base", None, 313e6, 0.01),
    ("imagenet/base", None, 460e6, 0.02),
    ("text_to_video/base_l", None, 419e6, 0.02),
    ("text_to_video/base", None, 3e9, 0.04),
    ("text_to_video/sr1", None, 1.3e9, 0.02),
    ("text_to_video/sr2", None, 419e6, 0.02),
]


@pytest.mark.parametrize(("config", "overlay", "published", "tolerance"), PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(
    config: str, overlay: str | None, published: float, tolerance: float
) -> None:
    parameters = of(config, overlay).parameters()
    assert parameters["total"] == sum(parameters["parts"].values()) == pytest.approx(published, rel=tolerance)
    name = f"`{config}`" + (f" + `{Path(overlay).name}`" if overlay else "")
    row = f"| {name} | {published / 1e6:,.0f} M | {parameters['total'] / 1e6:,.1f} M | {parameters['total'] / published - 1:+.1%} |"
    assert row in (ROOT / "docs" / "FIDELITY.md").read_text(encoding="utf-8").splitlines()


def test_the_autoencoder_has_our_count_and_its_critic_stands_beside() -> None:
    parameters = of("ucf101/vae").parameters()
    assert parameters["total"] == pytest.approx(370e6, rel=0.01)
    assert parameters["parts"]["encoder"] == pytest.approx(145e6, rel=0.01)
    assert 61e6 <= parameters["beside"]["discriminator"] <= 68e6
    count = {part: f"{number / 1e6:.1f}" for part, number in (parameters["parts"] | parameters["beside"]).items()}
    page = (ROOT / "docs" / "FIDELITY.md").read_text(encoding="utf-8")
    assert f"| {parameters['total'] / 1e6:.1f} M ({count['encoder']} + {count['decoder']}) |" in page
    assert f"| its discriminator | not given | {count['discriminator']} M |" in page


def test_the_autoencoder_of_images_is_2d_and_has_a_third_of_the_weights() -> None:
    plan, cube = of("imagenet/vae"), of("imagenet/vae", None, "--model.vae.time_kernel", "3")
    kernels = [m for m in plan.model.vae.modules() if isinstance(m, nn.Conv3d)]
    assert kernels and all(kernel.weight.shape[2] == 1 for kernel in kernels)
    assert plan.parameters()["total"] == pytest.approx(103e6, rel=0.01)
    assert cube.parameters()["total"] == pytest.approx(307e6, rel=0.01)


# ---- FLOPs -----------------------------------------------------------------------------------------------------------

SMALL = DenoiserConfig(16, 6, 2, size=(3, 4, 4), window=(3, 2, 2), attention="plain", frame_prediction=True, classes=5)
MEDIUM = DenoiserConfig(64, 7, 4, size=(3, 8, 8), window=(3, 4, 4), attention="plain")
SHARE = Share(videos=2, images=3)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters)


def latent_batch() -> JointBatch:
    return JointBatch(
        videos=torch.randn(2, 8, 3, 4, 4),
        images=torch.randn(3, 8, 1, 4, 4),
        captions=[""] * 5,
        labels=torch.arange(5),
        weight=torch.ones(5),
        slots=torch.arange(5),
        low_videos=torch.randn(2, 8, 3, 2, 2),
        low_images=torch.randn(3, 8, 1, 2, 2),
        space="latents",
        paths=[""] * 5,
    )


class NoModules:
    """In place of the counter's way to follow modules, which autograd.grad refuses."""

    parents = ("Global",)

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def trained(stage: L.LightningModule, batch: JointBatch) -> int:
    """FLOPs of one step of the stage's own training, as FlopCounterMode counts them."""
    stage.setup = lambda stage: None  # type: ignore[method-assign]  # the parents: latents come ready
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=1, **quiet)  # type: ignore[arg-type]
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # type: ignore[assignment]
    with counter:
        trainer.fit(stage, torch.utils.data.DataLoader([batch], batch_size=None))
    return counter.get_total_flops()


def on_meta(stage: LatentDiffusion) -> int:
    return round(sum(diffusion_cost(stage, stage.denoiser.config, SHARE, 1, torch.float32, None).flops.values()))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_flops_are_those_of_a_training_step_of_the_base(p: float) -> None:
    stage = BaseStage(SMALL, adamw, warmup=0, decay="constant", self_conditioning=p, frame_prediction=1.0)
    assert on_meta(stage) == trained(stage, latent_batch()) > 0


def test_flops_are_those_of_a_training_step_of_super_resolution() -> None:
    config = DenoiserConfig(16, 2, 2, size=(3, 4, 4), window=(3, 2, 2), attention="plain", super_resolution=True)
    stage = SuperResolutionStage(config, adamw, warmup=0, decay="constant", self_conditioning=1.0)
    assert on_meta(stage) == trained(stage, latent_batch()) > 0


TINY_VAE = VAEConfig(width=8, multipliers=(1, 1), strides=((2, 2, 2),), blocks=(0, 1), middle_blocks=0, norm="layer", latent_channels=2)
TINY_CRITIC = DiscriminatorConfig(width=4, multipliers=(2,), size=(8, 8))


@pytest.mark.parametrize("critic", [{"adversarial_weight": 0.0}, {"r1_weight": 0.0}, {"r1_every": 1}])
def test_flops_are_those_of_a_training_step_of_the_autoencoder_and_its_critic(critic: Mapping[str, Any]) -> None:
    def stage() -> VAEStage:
        return VAEStage(TINY_VAE, adamw, TINY_CRITIC, warmup=0, decay="constant", **critic)

    data = JointData("x.parquet", size=8, frames=5)
    batch = latent_batch()
    batch.videos, batch.images, batch.space = torch.randn(2, 3, 5, 8, 8), torch.randn(3, 3, 1, 8, 8), "pixels"
    with torch.device("meta"):
        cost = autoencoder_cost(stage(), data, SHARE, None)
    assert round(sum(cost.flops.values())) == trained(stage(), batch) > 0


def test_checkpointing_costs_one_more_forward_pass_of_the_layers_and_far_less_memory() -> None:
    stage = BaseStage(MEDIUM, adamw, self_conditioning=0.0)
    configs = [replace(MEDIUM, layers=24, checkpointing=checkpointing) for checkpointing in (False, True)]
    kept, recomputed = (diffusion_cost(stage, config, SHARE, 1, torch.float32, torch.bfloat16) for config in configs)
    assert sum(kept.flops.values()) < sum(recomputed.flops.values()) < 4 / 3 * sum(kept.flops.values())
    assert recomputed.peak < kept.peak / 3


# ---- Bytes -----------------------------------------------------------------------------------------------------------

LAYOUT = Layout(videos=4, frames=3, images=6)


def on_a_cpu() -> tuple[Denoiser, tuple[Tensor, Tensor, Condition, Tensor]]:
    condition = Condition(LAYOUT, torch.ones(10, dtype=torch.bool))
    x = torch.randn(LAYOUT.total, 8, 8, 8)
    return Denoiser(MEDIUM), (x, torch.arange(10), condition, torch.randn_like(x))


def medium_cost() -> Any:
    return diffusion_cost(BaseStage(MEDIUM, adamw, self_conditioning=0.0), MEDIUM, Share(4, 6), 1, torch.float32, None)


def test_what_autograd_keeps_is_what_a_real_model_saves() -> None:
    denoiser, inputs = on_a_cpu()
    own = {p.untyped_storage().data_ptr() for p in [*denoiser.parameters(), *denoiser.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = denoiser(*inputs).square().mean()
    assert loss.requires_grad
    assert medium_cost().kept == pytest.approx(sum(saved.values()), rel=0.001)


def test_peak_is_what_a_real_step_allocates_at_most() -> None:
    denoiser, inputs = on_a_cpu()
    for p in denoiser.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        denoiser(*inputs).square().mean().backward()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert medium_cost().peak == pytest.approx(peak, rel=0.001)


@pytest.mark.parametrize("optimizer", [adamw, AdafactorBigVision, lambda p: torch.optim.SGD(p, momentum=0.9)])
def test_moments_are_those_of_a_real_optimiser_after_a_step(optimizer: Any) -> None:
    model = nn.Sequential(nn.Linear(30, 50), nn.Conv2d(3, 4, 5))
    real = optimizer(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    real.step()
    held = sum(value.nbytes for state in real.state.values() for name, value in state.items() if name != "step")
    stage = BaseStage(SMALL, optimizer)
    assert moment_bytes(stage, list(model.parameters()), flat=False) == pytest.approx(held, abs=16)
    count = sum(p.numel() for p in model.parameters())
    if optimizer is AdafactorBigVision:
        assert moment_bytes(stage, list(model.parameters()), flat=True) == 8 * count


@pytest.mark.parametrize(
    ("engine", "parameters", "gradients", "optimizer"),
    [
        ("ddp", 80_613_184, 80_613_184, 161_226_416),
        ("zero1", 80_613_184, 40_311_040, 80_613_188 + 40_306_592),
        ("zero2", 80_613_184, 40_311_040, 80_613_188 + 40_306_592),
        ("zero3", 40_306_592, 40_306_592, 80_613_188 + 40_306_592),
    ],
)
def test_engines_hold_what_was_measured_of_them(engine: Any, parameters: int, gradients: int, optimizer: int) -> None:
    """Bytes of a real model of 20,153,296 parameters on two ranks in float32, under Lightning 2.6.6 and DeepSpeed 0.19.8."""
    held = engine_bytes(engine, 20_153_296, 161_226_416, 2, "32-true", 1, False, {"kept": 0})
    assert (held.parameters, held.gradients, held.optimizer) == pytest.approx((parameters, gradients, optimizer), rel=0.001)


def test_bfloat16_under_zero_keeps_float32_weights_and_two_moments_in_shards() -> None:
    held = engine_bytes("zero2", 1000, 8000, 4, "bf16-mixed", 1, True, {"kept": 7})
    assert (held.parameters, held.gradients, held.optimizer, held.ema) == (2000, 500, 3000, 1000)
    wide = engine_bytes("zero2", 1000, 8000, 4, "32-true", 1, True, {"kept": 7})
    assert held.buffers == wide.buffers == 2 * 4 * BUCKET, "two of bfloat16, and a float32 one in which gradients are added up"
    assert engine_bytes("zero1", 1000, 8000, 4, "bf16-mixed", 2, True, {"kept": 7}).gradients == 2000
    held = engine_bytes("ddp", 1000, 8000, 1, "bf16-mixed", 1, True, {"kept": 7})
    assert (held.parameters, held.gradients, held.optimizer, held.ema, held.buffers, held.total("kept")) == (
        4000,
        4000,
        8000,
        4000,
        0,
        20007,
    )


# ---- The report ------------------------------------------------------------------------------------------------------


def test_report_of_the_embedded_base() -> None:
    plan = of("shapes/base", None, "--json")
    report = json.loads(json.dumps(plan.report()))
    assert report["stage"] == "base" and report["parameters"]["beside"]["text"] > 0
    assert report["tokens"] == {"frame": 16, "video": 80, "spatial_window": 16, "spatiotemporal_window": 80}
    assert report["flops_per_step"] == sum(report["flops_by_kind"].values()) > 0
    assert list(report["bytes_per_gpu"]) == ["ddp", "zero1", "zero2", "zero3"]
    held = report["bytes_per_gpu"]["ddp"]
    assert held["fits_gib"] == {"kept": [24, 40, 80], "recomputed": [24, 40, 80]}
    assert held["parameters"] == 4 * (report["parameters"]["total"] + report["parameters"]["beside"]["text"])
    written = report["checkpoint"]["ddp"]
    assert written["bytes"] > 16 * (report["parameters"]["total"] + report["parameters"]["beside"]["text"]), "weights, moments, average"
    assert written["seconds"] == written["bytes"] / 1e9 and report["time"] is None and report["steps"] == 1050


# ---- Time and disk ---------------------------------------------------------------------------------------------------

# SPEC section 6: steps, or passes over a set of so many clips in batches of so many (UCF-101 has 9,537 training clips, Kinetics-600
# 392,622, ImageNet 1,281,167 pictures).
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
def test_stages_train_for_the_published_durations(config: str, steps: float) -> None:
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
def test_guidance_of_experiments_is_on_where_table_8_has_it(config: str, guidance: Guidance) -> None:
    assert of(config).model.guidance == guidance


@pytest.mark.parametrize("stage", ["vae", "base", "base_l", "base_9x16", "sr1", "sr2"])
def test_text_to_video_takes_8_frames_a_second(stage: str) -> None:
    assert of(f"text_to_video/{stage}").datamodule.framing.fps == 8


def test_days_follow_from_what_a_gpu_does() -> None:
    plan = of("text_to_video/base", None, "--tflops", "200", "--gpus", "64", "--disk", "500")
    flops = 10**16
    time = plan._time(flops)
    assert time is not None and time["tflops_per_gpu"] == 200
    assert time["days"][64] == pytest.approx(550_000 * flops / (64 * 200e12) / 86400)
    assert time["days"][8] == pytest.approx(8 * time["days"][64])


def test_days_of_a_measured_step_are_steps_times_seconds() -> None:
    plan = of("text_to_video/base", None, "--gpus", "64", "--step_seconds", "2.5")
    time = plan._time(3 * 10**16)
    assert time is not None and time["days"][64] == pytest.approx(550_000 * 2.5 / 86400)
    assert time["tflops_per_gpu"] == pytest.approx(3e16 / 64 / 2.5 / 1e12)
    assert list(time["days"]) == [gpus for gpus in (1, 8, 16, 32, 64, 128) if not plan.datamodule.videos_per_batch % gpus]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tflops", "1", "--step_seconds", "1"], "both say how fast"),
        (["--tflops", "1", "--trainer.max_steps", "-1"], "a training without an end has no days"),
    ],
)
def test_days_that_cannot_be_told_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        of("ucf101/base_l", None, *arguments)._time(1)


FULL_SIZE = [
    path for path in FILES if RUN.get(path.parent.name) is None and "\nover:" in path.read_text(encoding="utf-8") and documented(path)
]


@pytest.mark.parametrize("config", FULL_SIZE, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_stage_fits_as_it_is_configured(config: Path) -> None:
    """On cards of 80 GB under DDP."""
    plan = planned("--config", str(config))
    share, stage = Share.of(plan.datamodule, plan.gpus), plan.model
    if isinstance(stage, VAEStage):
        peak = autoencoder_cost(stage, plan.datamodule, share, torch.bfloat16).peak
    else:
        peak = diffusion_cost(stage, stage.denoiser.config, share, 128, torch.float32, torch.bfloat16).peak
    trained = list(stage.parameters())
    moments, count = moment_bytes(stage, trained, flat=False), sum(p.numel() for p in trained)
    held = engine_bytes("ddp", count, moments, plan.gpus, "bf16-mixed", 1, bool(plan.options.ema.decay), {"kept": peak})
    assert held.total("kept") <= USABLE * 80 * 2**30


def test_gpus_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.videos_per_batch counts the global batch and must be a multiple of the 3 GPUs, got 256"):
        of("ucf101/base_l", None, "--gpus", "3").report()
    assert of("ucf101/base_l").gpus == 8 and of("text_to_video/sr1").gpus == 64
