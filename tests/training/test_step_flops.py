"""Model operations of a training step, as the speed in the log counts them, against steps that really ran."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.base import BaseStage
from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from tests.cli.test_plan_costs import SMALL, TINY_DISCRIMINATOR, TINY_VAE, adamw, latent_batch, trained
from walt_pl.models.vae import VAE
from walt_pl.text.small_encoder import SmallTextConfig
from walt_pl.training.autoencoder_cost import clip_flops
from walt_pl.training.step_flops import step_flops

MATH: Any = "math"


def base(**changes: Any) -> BaseStage:
    config = replace(SMALL, frame_prediction=1.0, **changes)
    return BaseStage(config, adamw, warmup_steps=0, lr_schedule="constant")


def known(stage: torch.nn.Module, batch: Any, step: int = 0) -> float:
    found = step_flops(stage, batch, step)
    assert found is not None
    return found


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_step_flops_equal_a_training_step_of_the_base(p: float) -> None:
    assert known(base(self_conditioning=p), latent_batch()) == trained(base(self_conditioning=p), latent_batch())


def test_step_flops_count_the_expected_share_of_self_conditioning() -> None:
    none, half, whole = (known(base(self_conditioning=p), latent_batch()) for p in (1e-9, 0.5, 1.0))
    assert half == pytest.approx((none + whole) / 2)


def test_step_flops_leave_out_what_is_recomputed() -> None:
    """Layers under activation checkpointing, and the scores of fused attention."""
    assert known(base(activation_checkpointing=True, attention="sdpa"), latent_batch()) == known(base(attention=MATH), latent_batch())


def test_step_flops_of_pixels_include_the_frozen_encoder() -> None:
    stage, batch = base(), latent_batch()
    latents = known(stage, batch)
    stage._vae = [VAE(replace(TINY_VAE, latent_channels=8))]  # type: ignore[list-item]
    assert known(stage, batch) == latents, "cached latents are not encoded"
    batch.space, batch.low_res_videos, batch.low_res_images = "pixels", None, None
    batch.videos, batch.images = torch.zeros(2, 3, 5, 8, 8), torch.zeros(3, 3, 1, 8, 8)
    encoded = sum(clip_flops(stage._vae[0].config, (n, 3, t, 8, 8))["encode"] for n, t in ((2, 5), (3, 1)))  # type: ignore[attr-defined]
    assert known(stage, batch) == latents + encoded > latents


def test_step_flops_of_text_count_the_encoder_that_runs_in_the_step() -> None:
    """A trained encoder with its gradients; a frozen one, as of super-resolution, without them."""
    text = SmallTextConfig(width=8, depth=1, num_heads=2, max_length=4)
    config = replace(SMALL, text_width=8, self_conditioning=0.0, num_classes=None)
    stage = BaseStage(config, adamw, text)
    trains = known(stage, latent_batch())

    class Frozen(LatentDiffusion):
        text_encoder = stage.text  # type: ignore[assignment]

    assert known(LatentDiffusion(config, adamw), latent_batch()) < known(Frozen(config, adamw), latent_batch()) < trains


def test_step_flops_of_the_autoencoder_equal_its_step_before_and_after_the_discriminator_starts() -> None:
    def stage(start: int) -> VAEStage:
        return VAEStage(TINY_VAE, adamw, TINY_DISCRIMINATOR, warmup_steps=0, lr_schedule="constant", r1_every=1, adversarial_start=start)

    batch = latent_batch()
    batch.videos, batch.images, batch.space = torch.randn(2, 3, 5, 8, 8), torch.randn(3, 3, 1, 8, 8), "pixels"
    before, after = (known(stage(5), batch, step) for step in (4, 5))
    assert before < after
    assert (before, after) == (trained(stage(5), batch), trained(stage(0), batch))


def test_step_flops_draw_no_random_numbers_and_know_no_other_module() -> None:
    stage, batch, state = base(), latent_batch(), torch.get_rng_state()
    known(stage, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert step_flops(torch.nn.Linear(2, 2), batch, 0) is None
