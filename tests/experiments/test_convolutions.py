"""Convolutions of the shipped configurations in bfloat16: torch has returned uninitialised memory for one of them."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stages.vae import VAEStage
from tests.helpers.experiments import FILES, planned
from tests.helpers.poison import poisoned_memory
from walt_pl.cli.plan_costs import share_of, stage_cost, vae_stage_cost
from walt_pl.runs.stage_names import STAGES

SIDES = (4, 6)
"""Rows and columns in place of those of the configuration."""


@dataclass(frozen=True, order=True)
class Convolution:
    """A call of conv2d or conv3d, without its rows and columns."""

    weight: tuple[int, ...]
    frames: tuple[int, ...]
    """Frames of a 3D input; empty in 2D."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    bias: bool

    def __str__(self) -> str:
        return "x".join(map(str, self.weight)) + f"-frames{self.frames}-stride{self.stride}-padding{self.padding}"


class Recorder(TorchFunctionMode):
    """Collect the convolutions that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[Convolution] = set()

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function in (F.conv2d, F.conv3d):
            self._record(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _record(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *_: Any, **__: Any) -> None:
        dims = weight.dim() - 2
        each = [tuple(value) if isinstance(value, tuple | list) else (value,) * dims for value in (stride, padding)]
        self.found.add(Convolution(tuple(weight.shape), tuple(x.shape[2:-2]), each[0], each[1], bias is not None))


def convolutions_of(configs: Iterable[Path]) -> list[Convolution]:
    """The convolutions of a training step of each stage, forward passes of every network in it, on the meta device."""
    recorder = Recorder()
    for config in configs:
        plan = planned("--config", str(config))
        share = share_of(plan.datamodule, plan.gpus)
        with recorder:
            if isinstance(plan.model, VAEStage):
                vae_stage_cost(plan.model, plan.datamodule, share, None)
            else:
                stage_cost(plan.model, plan.model.denoiser.config, share, 12, torch.float32, None)
    return sorted(recorder.found)


def shipped_stages() -> list[Path]:
    """Files of shipped experiments that can be trained by themselves: named like a stage, neither under nor over other files."""
    named = [path for path in FILES if any(re.fullmatch(pattern, path.stem) for pattern, *_ in STAGES)]
    return [path for path in named if path.parent.name not in ("common", "ablations")]


@pytest.fixture(scope="module")
def shipped() -> list[Convolution]:
    """The convolutions of all shipped stages."""
    return convolutions_of(shipped_stages())


def error_in_bfloat16(convolution: Convolution) -> float:
    """Largest difference from float32, as a share of the output's standard deviation; garbage makes it huge."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, convolution.weight[1], *convolution.frames, *SIDES, generator=generator)
    weight = torch.randn(convolution.weight, generator=generator) / math.sqrt(math.prod(convolution.weight[1:]))
    bias = torch.randn(convolution.weight[0], generator=generator) if convolution.bias else None
    call = F.conv3d if convolution.frames else F.conv2d
    rounded = [None if one is None else one.bfloat16() for one in (x, weight, bias)]
    exact = call(*[None if one is None else one.float() for one in rounded], convolution.stride, convolution.padding)  # type: ignore[arg-type]
    with poisoned_memory():
        got = call(*rounded, convolution.stride, convolution.padding)  # type: ignore[arg-type]
    return float((got.float() - exact).abs().max() / exact.std())


def test_convolutions_of_shipped_configurations_are_right_in_bfloat16(shipped: list[Convolution]) -> None:
    assert len(shipped) > 40 and any(c.frames == (17,) for c in shipped) and any(not c.frames for c in shipped)
    wrong = {str(c): error for c in shipped if not (error := error_in_bfloat16(c)) < 0.05}
    assert wrong == {}


def test_convolutions_of_one_frame_of_three_channels_are_never_3d(shipped: list[Convolution]) -> None:
    """torch 2.14 on CPUs with AMX returns uninitialised memory for it in bfloat16."""
    assert [str(c) for c in shipped if c.frames == (1,) and c.weight[1] == 3] == []
