"""Costs of training steps: FLOPs against the stages' own steps, bytes against a real model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from datamodules.joint import JointData
from stages.base import BaseStage
from stages.latent_diffusion import LatentDiffusion
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from walt_pl.blocks.frames import FrameLayout
from walt_pl.cli.plan_costs import stage_cost, vae_stage_cost
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.discriminator import DiscriminatorConfig
from walt_pl.models.vae import VAEConfig
from walt_pl.training.denoiser_cost import Share

# ---- FLOPs -----------------------------------------------------------------------------------------------------------

SMALL = DenoiserConfig(16, 6, 2, size=(3, 4, 4), window_size=(3, 2, 2), attention="math", frame_prediction=0.1, num_classes=5)
MEDIUM = DenoiserConfig(64, 7, 4, size=(3, 8, 8), window_size=(3, 4, 4), attention="math")
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
        global_batch_index=torch.arange(5),
        low_res_videos=torch.randn(2, 8, 3, 2, 2),
        low_res_images=torch.randn(3, 8, 1, 2, 2),
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
    return round(sum(stage_cost(stage, stage.denoiser.config, SHARE, 1, torch.float32, None).flops.values()))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_plan_costs_flops_equal_a_training_step_of_the_base(p: float) -> None:
    stage = BaseStage(replace(SMALL, self_conditioning=p, frame_prediction=1.0), adamw, warmup_steps=0, lr_schedule="constant")
    assert on_meta(stage) == trained(stage, latent_batch()) > 0


def test_plan_costs_flops_equal_a_training_step_of_super_resolution() -> None:
    config = DenoiserConfig(16, 2, 2, size=(3, 4, 4), window_size=(3, 2, 2), attention="math", super_resolution=True, self_conditioning=1.0)
    stage = SuperResolutionStage(config, adamw, warmup_steps=0, lr_schedule="constant")
    assert on_meta(stage) == trained(stage, latent_batch()) > 0


TINY_VAE = VAEConfig(
    width=8, channel_multipliers=(1, 1), strides=((2, 2, 2),), num_res_blocks=(0, 1), num_middle_blocks=0, norm="layer", latent_channels=2
)
TINY_DISCRIMINATOR = DiscriminatorConfig(width=4, channel_multipliers=(2,), size=(8, 8))


@pytest.mark.parametrize("discriminator", [{"adversarial_weight": 0.0}, {"r1_weight": 0.0}, {"r1_every": 1}])
def test_plan_costs_flops_equal_a_training_step_of_vae_and_discriminator(discriminator: Mapping[str, Any]) -> None:
    def stage() -> VAEStage:
        return VAEStage(TINY_VAE, adamw, TINY_DISCRIMINATOR, warmup_steps=0, lr_schedule="constant", **discriminator)

    data = JointData("x.parquet", size=8, frames=5)
    batch = latent_batch()
    batch.videos, batch.images, batch.space = torch.randn(2, 3, 5, 8, 8), torch.randn(3, 3, 1, 8, 8), "pixels"
    with torch.device("meta"):
        cost = vae_stage_cost(stage(), data, SHARE, None)
    assert round(sum(cost.flops.values())) == trained(stage(), batch) > 0


def test_plan_costs_activation_checkpointing_adds_one_forward_pass_and_saves_memory() -> None:
    stage = BaseStage(MEDIUM, adamw)
    configs = [replace(MEDIUM, depth=24, activation_checkpointing=activation_checkpointing) for activation_checkpointing in (False, True)]
    kept, recomputed = (stage_cost(stage, config, SHARE, 1, torch.float32, torch.bfloat16) for config in configs)
    assert sum(kept.flops.values()) < sum(recomputed.flops.values()) < 4 / 3 * sum(kept.flops.values())
    assert recomputed.peak < kept.peak / 3


# ---- Bytes -----------------------------------------------------------------------------------------------------------

LAYOUT = FrameLayout(videos=4, frames=3, images=6)


def on_a_cpu() -> tuple[Denoiser, tuple[Tensor, Tensor, Condition, Tensor]]:
    condition = Condition(LAYOUT, torch.ones(10, dtype=torch.bool))
    x = torch.randn(LAYOUT.total_frames, 8, 8, 8)
    return Denoiser(MEDIUM), (x, torch.arange(10), condition, torch.randn_like(x))


def medium_cost() -> Any:
    return stage_cost(BaseStage(MEDIUM, adamw), MEDIUM, Share(4, 6), 1, torch.float32, None)


def test_plan_costs_kept_activations_equal_what_a_real_model_saves() -> None:
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


def test_plan_costs_peak_equals_what_a_real_step_allocates() -> None:
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
