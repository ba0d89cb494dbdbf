"""The optimisers of the paper, by the class paths of a config, on weights that start at zero."""

import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

from stages.optimisation import clip_gradients, fuse_on_gpu, learning_rate
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Denoiser, DenoiserConfig

ADAFACTOR = {"class_path": "timm.optim.AdafactorBigVision", "init_args": {"lr": 2e-4}}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "AdamW": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-4}},
    "Adam (0, 0.99)": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4, "betas": [0.0, 0.99]}},
    "Adafactor": ADAFACTOR,
}


def parsed(config: dict[str, Any]) -> Any:
    """Return what the program's parser makes of an `optimizer:` in YAML."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    return parser.instantiate_classes(parser.parse_object({"optimizer": config})).optimizer


@dataclass
class Training:
    """A denoiser that learns one batch by heart."""

    config: dict[str, Any]

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.denoiser = Denoiser(DenoiserConfig(width=32, depth=2, num_heads=2, size=(3, 4, 4), window_size=(3, 2, 2)))
        self.optimizer: Optimizer = parsed(self.config)(self.denoiser.parameters())
        self.target = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))

    def steps(self, count: int) -> list[float]:
        losses = []
        condition = Condition(FrameLayout(1, 3, 0), torch.ones(1, dtype=torch.bool))
        for _ in range(count):
            loss = (self.denoiser(self.target, torch.tensor([500]), condition) - self.target).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


def size(weight: Tensor) -> float:
    return float(weight.detach().square().mean().sqrt())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimizer_moves_zero_initialised_weights_by_about_its_learning_rate(name: str) -> None:
    training = Training(OPTIMISERS[name])
    losses = training.steps(30)
    assert losses[-1] < losses[0]
    rate = OPTIMISERS[name]["init_args"]["lr"]
    # Thirty steps of one rate in much the same direction; torch.optim.Adafactor goes a thousandth of that way.
    assert 10 * rate < size(training.denoiser.final_layer.weight) < 35 * rate
    assert size(training.denoiser.modulation.mlp[2].bias) > 3 * rate


def test_adafactor_keeps_rows_and_columns_instead_of_a_second_matrix() -> None:
    training = Training({**ADAFACTOR, "init_args": {"lr": 2e-4, "momentum": None}})
    training.steps(1)
    weight = training.denoiser.blocks[0].mlp[0].weight  # type: ignore[union-attr, index]
    kept = [value.numel() for key, value in training.optimizer.state[weight].items() if key != "step"]
    assert sorted(kept) == [32, 128]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimizer_resumes_from_a_checkpoint_bit_for_bit(name: str) -> None:
    whole, resumed = Training(OPTIMISERS[name]), Training(OPTIMISERS[name])
    whole.steps(3)
    file = io.BytesIO()
    torch.save({"model": whole.denoiser.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.denoiser.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    assert resumed.steps(3) == whole.steps(3)


def test_learning_rate_constant_warms_up_and_stays() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = learning_rate(optimizer, warmup_steps=3, total=-1, lr_schedule="constant")
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_learning_rate_cosine_equals_torch_after_the_warmup() -> None:
    ours, theirs = (SGD([torch.zeros(1, requires_grad=True)], lr=1.0) for _ in range(2))
    schedules = (
        learning_rate(ours, warmup_steps=0, total=10, lr_schedule="cosine"),
        torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=10),
    )
    for _ in range(10):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("limit, want", [(1.0, 1.0), (None, 5.0), (9.0, 5.0)])
def test_clip_gradients_limits_the_norm_and_returns_the_norm_before(limit: float | None, want: float) -> None:
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([weight], limit)) == pytest.approx(5)
    assert float(weight.grad.norm()) == pytest.approx(want, rel=1e-4)


def parameters(device: str) -> list[dict[str, Any]]:
    return [{"params": [torch.nn.Parameter(torch.ones(2, device=device))]} for _ in range(2)]


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_fuse_on_gpu_chooses_the_kernel_for_gpu_weights_unless_asked_otherwise(kind: type[Adam]) -> None:
    with FakeTensorMode():
        for device, settings, wanted in (
            ("cuda", {}, True),
            ("cpu", {}, None),
            ("cuda", {"fused": False}, False),
            ("cuda", {"foreach": True}, None),
            ("cuda", {"foreach": False}, None),
            ("cuda", {"capturable": True}, None),
        ):
            optimizer = fuse_on_gpu(kind(parameters(device), **settings))
            assert [group["fused"] for group in optimizer.param_groups] == [wanted] * 2, (device, settings)
            assert optimizer.defaults["fused"] == wanted
        assert "fused" not in fuse_on_gpu(RAdam(parameters("cuda"))).defaults


def test_fuse_on_gpu_keeps_its_choice_over_that_of_a_checkpoint() -> None:
    """A training that began on GPUs goes on here, and the other way round: the step counts are where the kernel wants them."""
    for chosen, other in ((True, None), (None, True)):
        trained = AdamW(parameters("cpu"), fused=other)
        for group in trained.param_groups:
            group["params"][0].grad = torch.ones(2)
        trained.step()
        optimizer = fuse_on_gpu(AdamW(parameters("cpu"), fused=chosen))
        optimizer.load_state_dict(trained.state_dict())
        assert [group["fused"] for group in optimizer.param_groups] == [chosen] * 2
        assert [float(state["step"]) for state in optimizer.state.values()] == [1, 1]
