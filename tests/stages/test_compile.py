"""torch.compile as an option of the stages: the same numbers under the same names, and no compilation twice."""

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from stages.base import BaseStage
from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from tests.helpers.known_network import CONFIG, build_stage, joint_batch, train_without_loop
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.compiled_blocks import RECOMPILE_LIMIT, TEXT_TOKENS, compile_blocks, pad_text
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.vae import VAEConfig
from walt_pl.training import compiled_blocks
from walt_pl.training.callbacks.compile_time import CompileTime
from walt_pl.training.compiled_blocks import is_compiled
from walt_pl.training.strategies.zero import ZeROStrategy

DENOISER = DenoiserConfig(width=16, depth=2, num_heads=2, size=(3, 4, 4), window_size=(3, 2, 2), attention="math")
SPATIAL = replace(CONFIG, depth=3, window_size=(1, 4, 4), self_conditioning=0.5, activation_checkpointing=True, attention="math")
"""Layers of one kind, which have one graph for each way of running them."""
AUTOENCODER = VAEConfig(8, (1, 1), ((2, 2, 2),), (0, 1), 0, 4, "layer")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile writes C++ on CPUs, and there is no compiler"
)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Start and end without graphs of other tests."""
    with torch._dynamo.config.patch(recompile_limit=8):
        torch._dynamo.reset()
        counters.clear()
        yield
        torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def sgd() -> Any:
    return partial(torch.optim.SGD, lr=0.1)


def base(compile: bool, denoiser: DenoiserConfig = DENOISER) -> BaseStage:
    stage = BaseStage(denoiser, sgd())
    draw(stage)
    if compile:
        compile_blocks(stage.denoiser.blocks)
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


def training_stage(backend: str | None, config: DenoiserConfig = SPATIAL) -> LatentDiffusion:
    """Build a stage with context frames, without a loop."""
    stage: LatentDiffusion = build_stage(LatentDiffusion, config)
    draw(stage)
    if backend is not None:
        compile_blocks(stage.denoiser.blocks, backend)
    return stage


def training_loss(stage: LatentDiffusion, layout: FrameLayout, step: int = 0) -> Tensor:
    train_without_loop(stage, step)
    return stage.training_step(joint_batch(layout), 0)


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def strategy(device: str) -> Any:
    return SimpleNamespace(root_device=torch.device(device))


# ---- Which layers are compiled --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "device", "wanted"),
    [("auto", "cuda", True), ("auto", "cpu", False), (True, "cpu", True), (True, "cuda", True), (False, "cuda", False)],
)
def test_compile_auto_compiles_on_cuda_alone(choice: Any, device: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_blocks, "find_obstacle", lambda device: None)
    assert is_compiled(choice, strategy(device)) is wanted


def test_compile_auto_warns_and_runs_uncompiled_where_torch_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nmore lines")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # there may be no GPU
    with pytest.warns(UserWarning, match=r"model.compile.*uncompiled.*RuntimeError: Failed to find C compiler\.\)"):
        assert not is_compiled("auto", strategy("cuda"))


def test_compile_refuses_zero_3_and_auto_leaves_it_uncompiled() -> None:
    assert not is_compiled("auto", ZeROStrategy(3)) and not is_compiled(False, ZeROStrategy(3))
    with pytest.raises(ValueError, match=r"model.compile is true, and ZeRO 3.*set model.compile to auto"):
        is_compiled(True, ZeROStrategy(3))
    assert is_compiled(True, ZeROStrategy(2))


def test_compile_renames_no_weight() -> None:
    assert list(base(True).state_dict()) == list(base(False).state_dict())
    assert list(autoencoder(True).state_dict()) == list(autoencoder(False).state_dict())
    assert [name for name, _ in base(True).named_parameters()] == [name for name, _ in base(False).named_parameters()]


def test_compile_covers_denoiser_blocks_encoder_and_decoder_only_where_asked() -> None:
    def compiled(stage: nn.Module) -> set[str]:
        return {name for name, module in stage.named_modules() if module._compiled_call_impl is not None}

    assert compiled(base(True)) == {f"denoiser.blocks.{layer}" for layer in range(2)}
    assert compiled(autoencoder(True)) == {"vae.encoder", "vae.decoder"}
    assert not compiled(base(False)) and not compiled(autoencoder(False)) and not compiled(VAEStage(AUTOENCODER, sgd()))


# ---- No compilation twice -------------------------------------------------------------------------------------------


def test_compile_training_compiles_each_layout_once() -> None:
    """Neither other draws, nor other weights, nor a validation between two steps, nor a layout of before compile anything."""
    stage, plain, layouts = training_stage("eager"), training_stage(None), (FrameLayout(3, 3, 2), FrameLayout(2, 3, 4))

    def train(step: int) -> None:
        losses = [training_loss(kind, layouts[step % 2], step) for kind in (stage, plain)]
        torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(gradient(stage, losses[0]), gradient(plain, losses[1]), atol=1e-6, rtol=1e-5)

    for step in range(2):
        train(step)
        assert graphs() == 2 * (step + 1), "with gradient, and in the first pass of self-conditioning"
    with torch.inference_mode():
        stage.validation_step(joint_batch(layouts[0]), 0)
    assert graphs() == 5
    with torch.no_grad():  # as the averages take the weights' place
        for parameter in [*stage.parameters(), *plain.parameters()]:
            parameter.copy_(0.5 * parameter)
    for step in range(2, 6):
        train(step)
    with torch.inference_mode():
        stage.validation_step(joint_batch(layouts[0]), 1)
    assert graphs() == 5 and not counters["graph_break"]
    assert RECOMPILE_LIMIT > 10 > 8, "with layers of two kinds, torch's limit of 8 would leave the validation uncompiled"


def test_pad_text_gives_captions_of_all_lengths_one_length_and_the_same_output() -> None:
    denoiser = Denoiser(replace(DENOISER, text_width=8))
    draw(denoiser)
    layout, x, timestep = FrameLayout(1, 3, 1), noise(4, 8, 4, 4), torch.tensor([500, 20])
    for length in (1, 7, TEXT_TOKENS, TEXT_TOKENS + 1):
        mask = torch.arange(length) < torch.tensor([[length], [1]])
        condition = Condition(layout, torch.tensor([True, True]), text=noise(2, length, 8), text_mask=mask)
        padded = pad_text(condition)
        assert padded.text is not None and padded.text_mask is not None
        assert padded.text.shape == (2, TEXT_TOKENS * (1 + (length > TEXT_TOKENS)), 8)
        assert torch.equal(padded.text_mask[:, :length], mask) and not padded.text_mask[:, length:].any()
        torch.testing.assert_close(denoiser(x, timestep, padded), denoiser(x, timestep, condition), atol=1e-5, rtol=1e-5)
    assert pad_text(Condition(layout, torch.tensor([True, True]))).text is None


def test_build_condition_pads_text_only_for_compiled_layers() -> None:
    stage = training_stage(None)
    stage.cached_text = SimpleNamespace(to=lambda _: SimpleNamespace(encode=lambda _: (noise(1, 5, 8), noise(1, 5) > 0)))  # type: ignore[assignment]
    for stage.compiled, length in ((False, 5), (True, TEXT_TOKENS)):
        condition = stage.build_condition(["a circle"], torch.tensor([0]), FrameLayout(1, 3, 0), torch.tensor([True]))
        assert condition.text is not None and condition.text.shape[1] == length


# ---- Reports --------------------------------------------------------------------------------------------------------


def test_compile_warns_of_the_limit_of_graphs_with_its_cause() -> None:
    layer = Layer()
    compile_blocks([layer], backend="eager")
    assert torch._dynamo.config.recompile_limit == RECOMPILE_LIMIT and not torch._dynamo.config.optimize_ddp
    with torch._dynamo.config.patch(recompile_limit=2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(noise(1, 2)), layer(noise(2, 2))
        with pytest.warns(UserWarning, match=r"'forward' .*test_compile.py.* as many graphs.*recompile_limit 2.*mismatch.*actual 3"):
            assert torch.equal(layer(noise(3, 2)), 2 * noise(3, 2))


def test_compile_time_logs_seconds_and_says_when_the_warm_up_is_over(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[float, int]] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: seen.append((values["speed/compile_seconds"], step)))
    trainer: Any = SimpleNamespace(loggers=[logger], global_step=0)
    layer, callback, module = Layer(), CompileTime(), training_stage(None)
    compile_blocks([layer], backend="eager")
    callback.setup(trainer, module, "fit")
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        for trainer.global_step, rows in enumerate((1, 2, 2, 2, 3, 3), start=1):
            layer(noise(rows, 2))
            callback.on_train_batch_end(trainer, module)
    callback.teardown(trainer, module, "fit")
    assert [step for _, step in seen] == [1, 2, 5]
    assert 0 < seen[0][0] < seen[1][0] < seen[2][0] == callback.seconds < 60
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" in ")[0] for line in lines] == ["torch.compile: 2 graphs", "torch.compile: 3 graphs"]
    assert [line.rpartition(" ")[2] for line in lines] == ["2", "5"], "the last step that compiled"
    layer(noise(4, 2))
    assert callback.seconds == seen[2][0], "it listens no more"


# ---- Equal numbers --------------------------------------------------------------------------------------------------


def test_compile_training_step_keeps_loss_and_gradient() -> None:
    config = replace(CONFIG, depth=2, self_conditioning=0, attention="math")
    compiled, plain = training_stage("aot_eager", config), training_stage(None, config)
    losses = [training_loss(stage, FrameLayout(3, 3, 2)) for stage in (compiled, plain)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient(compiled, losses[0]), gradient(plain, losses[1]), atol=1e-6, rtol=1e-5)
    assert graphs() == 2 and not counters["graph_break"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_compile_denoiser_keeps_loss_and_gradient_for_every_frame_layout(activation_checkpointing: bool) -> None:
    config = replace(DENOISER, activation_checkpointing=activation_checkpointing)
    compiled, plain = base(True, config), base(False, config)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="auto compiles on a GPU, and there is none")
def test_compile_auto_on_cuda_keeps_loss_and_gradient() -> None:
    assert is_compiled("auto", strategy("cuda:0"))
    wide = replace(CONFIG, width=64, num_heads=1, depth=2, attention="sdpa")
    compiled, plain = (training_stage(backend, wide).cuda() for backend in ("inductor", None))
    losses = []
    for stage in (compiled, plain):
        train_without_loop(stage)
        losses.append(stage.training_step(joint_batch(FrameLayout(3, 3, 2)).to(torch.device("cuda")), 0))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient(compiled, losses[0]), gradient(plain, losses[1]), atol=1e-4, rtol=1e-3)
