"""No stage lets the host wait for the device inside a training step."""

from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch

from stages.base import BaseStage
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.helpers.device_waits import DeviceWait, Stream, fused, train_on_meta
from tests.helpers.engine_training import CAPTIONS
from tests.helpers.known_network import joint_batch
from tests.helpers.tiny_vae import tiny_batch, tiny_stage
from walt_pl.data.batch import JointBatch
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder, train_vocabulary
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.spike_guard import SpikeGuard
from walt_pl.training.skipped_step import skips_on_device

STEPS = 4
TEXT = SmallTextConfig(width=8, depth=1, num_heads=2, vocab_size=64, max_length=8)
# Self-conditioning chooses rows; tests/diffusion has its pass.
DENOISER = DenoiserConfig(
    width=8, depth=2, num_heads=2, latent_channels=2, size=(3, 4, 4), window_size=(3, 2, 2), frame_prediction=0.5, self_conditioning=0.9
)


class Base(BaseStage):
    """The base stage without an autoencoder: its batches are latents."""

    def setup(self, stage: str) -> None:
        if self.text is not None:
            self.text.load_vocabulary(train_vocabulary(CAPTIONS, 64))


class SuperResolution(SuperResolutionStage):
    """A super-resolution stage without parents, with a text encoder of its own."""

    def setup(self, stage: str) -> None:
        self._text = [SmallTextEncoder(TEXT)]
        self._text[0].load_vocabulary(train_vocabulary(CAPTIONS, 64))


RATE: dict[str, Any] = {"warmup_steps": 2, "lr_schedule": "constant"}


def text_base(kind: Any = fused) -> Base:
    return Base(replace(DENOISER, text_width=8), kind(torch.optim.AdamW, lr=1e-3), TEXT, **RATE)


def class_base(kind: Any = fused) -> Base:
    return Base(replace(DENOISER, num_classes=5), kind(torch.optim.AdamW, lr=1e-3), **RATE)


def super_resolution(kind: Any = fused) -> SuperResolution:
    return SuperResolution(replace(DENOISER, super_resolution=True, text_width=8), kind(torch.optim.AdamW, lr=1e-3), **RATE)


def autoencoder(kind: Any = fused) -> VAEStage:
    return tiny_stage(kind(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99)), adversarial_weight=0.0)


def adversarial_autoencoder(kind: Any = fused) -> VAEStage:
    adam = kind(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))
    return tiny_stage(adam, discriminator_pause=0.9, r1_every=2, perceptual_frames=2)


STAGES: dict[str, Any] = {
    "base with text": text_base,
    "base with classes": class_base,
    "super-resolution": super_resolution,
    "autoencoder": autoencoder,
    "autoencoder with discriminator": adversarial_autoencoder,
}


def batches(name: str) -> list[JointBatch]:
    return [tiny_batch() if name.startswith("autoencoder") else joint_batch()] * STEPS


@pytest.mark.parametrize("name", STAGES)
def test_training_step_never_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, fused_steps = train_on_meta(STAGES[name](), batches(name), monkeypatch, Reseed(0), EMA(0.9), SpikeGuard())
    assert steps == STEPS - 2
    assert fused_steps == STEPS * 2 * (2 if name.endswith("discriminator") else 1), "two groups each"


class SyncsAreErrors(L.Callback):
    """Make each wait for the GPU an error, from the end of the second step on."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= trainer.global_step < trainer.max_steps else "default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
@pytest.mark.parametrize("name", STAGES)
def test_training_step_never_waits_for_the_gpu(name: str) -> None:
    module = STAGES[name](kind=lambda kind, **settings: lambda parameters: kind(parameters, **settings))
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=8,
        log_every_n_steps=1000,
        callbacks=[Reseed(0), EMA(0.9), SpikeGuard(), SyncsAreErrors()],
        **dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False),  # type: ignore[arg-type]
    )
    trainer.fit(module, Stream([batch.pin_memory() for batch in 2 * batches(name)]))
    assert trainer.global_step == 8 and all(map(skips_on_device, trainer.optimizers))


WAITS: dict[str, Any] = {
    "item": lambda loss, module: loss.item(),
    "bool": lambda loss, module: bool(loss > 0),
    "nonzero": lambda loss, module: (loss[None] > 0).nonzero(),
    "mask": lambda loss, module: loss[None][loss[None] > 0],
    "tolist": lambda loss, module: loss.tolist(),
    "cpu": lambda loss, module: loss.cpu(),
    "tensor": lambda loss, module: torch.tensor([1.0], device=loss.device),
    "to": lambda loss, module: torch.ones(1).to(loss.device),
    "log of a number": lambda loss, module: module.log("x", 1.0),
    "log in a progress bar": lambda loss, module: module.log("x", loss, prog_bar=True),
}


@pytest.mark.parametrize("name", WAITS)
def test_training_step_that_waits_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(L.Callback):
        def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
            if trainer.global_step >= 2:
                WAITS[name](loss, pl_module)

    with pytest.raises((DeviceWait, RuntimeError, NotImplementedError), match=r"copies|meta"):
        train_on_meta(STAGES["base with classes"](), batches(name), monkeypatch, SpikeGuard(), Waits())
