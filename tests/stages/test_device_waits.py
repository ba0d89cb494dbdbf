"""No stage lets the host wait for the device inside a training step."""

import importlib
import io
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console

import stages.vae
from stages.base import BaseStage
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.helpers.device_waits import DeviceWait, Stream, fused, train_on_meta
from tests.helpers.engine_training import CAPTIONS
from tests.helpers.known_network import joint_batch
from tests.helpers.tiny_vae import tiny_batch, tiny_stage, train
from walt_pl.blocks.transfer import HostCopy
from walt_pl.data.batch import JointBatch
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder, train_vocabulary
from walt_pl.training import callbacks as callbacks_of_training
from walt_pl.training.callbacks import progress_bar, spike_guard
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.compile_time import CompileTime
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.metrics import Metrics
from walt_pl.training.callbacks.progress_bar import ProgressBar
from walt_pl.training.callbacks.progress_file import ProgressFile
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.spike_guard import SpikeGuard
from walt_pl.training.callbacks.text_progress import TextProgress
from walt_pl.training.callbacks.throughput import Throughput
from walt_pl.training.figures import Figures
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


def callbacks(folder: Path) -> list[L.Callback]:
    """Return the callbacks of `fit` that act in each step, with its settings. Bar and file are written in each step."""
    bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True))
    average, guard, throughput, checkpoints = EMA(0.9), SpikeGuard(), Throughput(), Checkpoints(str(folder / "checkpoints"))
    own = [TextProgress(), ProgressFile(folder, folder / "checkpoints", seconds=0.0), CompileTime(), Reseed(0)]
    return [bar, average, guard, throughput, checkpoints, *own, Metrics()]


def test_callbacks_that_act_in_each_step_are_all_tested(tmp_path: Path) -> None:
    names = [found.name for found in pkgutil.iter_modules(callbacks_of_training.__path__, f"{callbacks_of_training.__name__}.")]
    hooks = ("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward")
    hooks += ("on_before_optimizer_step", "on_before_zero_grad")
    acting = {
        found
        for name in names
        for found in vars(importlib.import_module(name)).values()
        if isinstance(found, type) and issubclass(found, L.Callback) and found.__module__ == name
        if any(getattr(found, hook) is not getattr(L.Callback, hook) for hook in hooks)
    }
    assert acting == {type(callback) for callback in callbacks(tmp_path)}


@pytest.fixture
def without_first_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the bar in every step, and read no figures in the first one: it always shows them, and so waits."""
    render = Figures.render

    def skip_first(figures: Figures, trainer: L.Trainer, fresh: bool = False) -> str:
        if trainer.global_step == 1:
            figures._text, figures._read = "loss", 0
        return render(figures, trainer, fresh and trainer.global_step > 1)

    monkeypatch.setattr(Figures, "render", skip_first)
    monkeypatch.setattr(progress_bar, "SECONDS", 0.0)


@pytest.mark.usefixtures("without_first_figures")
@pytest.mark.parametrize("name", STAGES)
def test_training_step_never_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps, fused_steps = train_on_meta(STAGES[name](), batches(name), monkeypatch, *callbacks(tmp_path))
    assert steps == STEPS - 2
    assert fused_steps == STEPS * 2 * (2 if name.endswith("discriminator") else 1), "two groups each"


def test_vae_stage_reads_its_pause_once_the_autoencoders_step_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step makes one copy. Forward pass, backward pass and optimiser step of the autoencoder join the queue before it is read."""
    events: list[str] = []

    class Copy(HostCopy):
        def __init__(self, x: torch.Tensor) -> None:
            events.append("copy")
            super().__init__(x)

        def read(self) -> torch.Tensor:
            events.append("read")
            return super().read()

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            events.append("optimiser")
            return super().step(closure)

    monkeypatch.setattr(stages.vae, "HostCopy", Copy)
    module = tiny_stage(Adam, discriminator_pause=0.99, r1_every=1000)
    for name, of in (("encode", module.vae), ("decode", module.vae), ("manual_backward", module)):

        def record(*arguments: Any, name: str = name, call: Any = getattr(of, name)) -> Any:
            events.append(name)
            return call(*arguments)

        monkeypatch.setattr(of, name, record)
    train(module, [tiny_batch(images=0)] * 3)
    step = ["copy", "encode", "decode", "manual_backward", "optimiser", "read", "manual_backward", "optimiser"]
    # The penalty of step 0 has a backward pass of its own.
    assert events == [*step[:-1], "manual_backward", step[-1], *step, *step]


@pytest.mark.usefixtures("without_first_figures")
def test_spike_guard_reads_a_step_once_the_next_one_is_queued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[int] = []
    read: list[tuple[int, int]] = []
    now = {"batch": -1}

    class Copy:
        def __init__(self, x: torch.Tensor) -> None:
            self.shape = x.shape
            self.batch = now["batch"]
            made.append(self.batch)

        def read(self) -> torch.Tensor:
            read.append((self.batch, now["batch"]))
            return torch.zeros(self.shape)

    class Count(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            now["batch"] += 1

    monkeypatch.setattr(spike_guard, "HostCopy", Copy)
    train_on_meta(class_base(), batches("base") * 2, monkeypatch, Count(), *callbacks(tmp_path))
    assert made == list(range(2 * STEPS))
    assert read[: 2 * STEPS - 2] == [(step, step + 1) for step in range(2 * STEPS - 2)]


class SyncsAreErrors(L.Callback):
    """Make each wait for the GPU an error, after the second step and before the last one, which shows the loss."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= trainer.global_step < trainer.max_steps - 1 else "default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
@pytest.mark.usefixtures("without_first_figures")
@pytest.mark.parametrize("name", STAGES)
def test_training_step_never_waits_for_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)  # of the last step: it would ask for a data module
    module = STAGES[name](kind=lambda kind, **settings: lambda parameters: kind(parameters, **settings))
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=8,
        log_every_n_steps=1000,
        default_root_dir=tmp_path,
        callbacks=[*callbacks(tmp_path), SyncsAreErrors()],
        **dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False),  # type: ignore[arg-type]
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
