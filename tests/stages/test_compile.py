"""torch.compile as an option of the stages: the same numbers under the same names."""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.base import BaseStage
from stages.vae import VAEStage
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.vae import VAEConfig

DENOISER = DenoiserConfig(width=16, depth=2, num_heads=2, size=(3, 4, 4), window_size=(3, 2, 2), attention="math")
AUTOENCODER = VAEConfig(8, (1, 1), ((2, 2, 2),), (0, 1), 0, 4, "layer")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile writes C++ on CPUs, and there is no compiler"
)


def sgd() -> Any:
    return partial(torch.optim.SGD, lr=0.1)


def base(compile: bool, denoiser: DenoiserConfig = DENOISER) -> BaseStage:
    stage = BaseStage(denoiser, sgd(), compile=compile)
    draw(stage)
    return stage


def autoencoder(compile: bool) -> VAEStage:
    stage = VAEStage(AUTOENCODER, sgd(), adversarial_weight=0.0, compile=compile)
    draw(stage)
    return stage


def draw(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def denoiser_loss(stage: BaseStage, layout: FrameLayout) -> Tensor:
    condition = Condition(layout, torch.ones(layout.num_samples, dtype=torch.bool))
    loss: Tensor = stage.denoiser(noise(layout.total_frames, 8, 4, 4), torch.full((layout.num_samples,), 500), condition).square().mean()
    return loss


def autoencoder_loss(stage: VAEStage, frames: int) -> Tensor:
    return stage.vae.decode(stage.vae.encode(noise(1, 3, frames, 8, 8)).mean).square().mean()


def gradient(stage: nn.Module, loss: Tensor) -> Tensor:
    stage.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in stage.parameters() if p.grad is not None])


def test_compile_renames_no_weight() -> None:
    assert list(base(True).state_dict()) == list(base(False).state_dict())
    assert list(autoencoder(True).state_dict()) == list(autoencoder(False).state_dict())
    assert [name for name, _ in base(True).named_parameters()] == [name for name, _ in base(False).named_parameters()]


def test_compile_covers_denoiser_blocks_encoder_and_decoder_only_where_asked() -> None:
    def compiled(stage: nn.Module) -> set[str]:
        return {name for name, module in stage.named_modules() if module._compiled_call_impl is not None}

    assert compiled(base(True)) == {f"denoiser.blocks.{layer}" for layer in range(2)}
    assert compiled(autoencoder(True)) == {"vae.encoder", "vae.decoder"}
    assert not compiled(base(False)) and not compiled(autoencoder(False))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_compile_denoiser_keeps_loss_and_gradient_for_every_frame_layout(activation_checkpointing: bool) -> None:
    config = DenoiserConfig(**{**vars(DENOISER), "activation_checkpointing": activation_checkpointing})
    compiled, plain = base(True, config), base(False, config)
    # The first pass of self-conditioning runs on other numbers of videos and images at each step.
    for layout in (FrameLayout(2, 3, 4), FrameLayout(1, 3, 2), FrameLayout(0, 3, 3)):
        losses = [denoiser_loss(stage, layout) for stage in (compiled, plain)]
        torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient(compiled, losses[0]), gradient(plain, losses[1]), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@needs_compiler
def test_compile_vae_keeps_loss_and_gradient_on_videos_and_images() -> None:
    compiled, plain = autoencoder(True), autoencoder(False)
    for frames in (5, 1):
        losses = [autoencoder_loss(stage, frames) for stage in (compiled, plain)]
        torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient(compiled, losses[0]), gradient(plain, losses[1]), atol=1e-4, rtol=1e-3)
