"""Memory of engines, against bytes of real optimisers and engines."""

from typing import Any

import pytest
import torch
from timm.optim.adafactor_bv import AdafactorBigVision
from torch import nn

from walt_pl.training.engine_memory import BUCKET, engine_bytes, moment_bytes


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, AdafactorBigVision, lambda p: torch.optim.SGD(p, momentum=0.9)])
def test_moment_bytes_equal_those_of_a_real_optimizer(optimizer: Any) -> None:
    model = nn.Sequential(nn.Linear(30, 50), nn.Conv2d(3, 4, 5))
    real = optimizer(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    real.step()
    held = sum(value.nbytes for state in real.state.values() for name, value in state.items() if name != "step")
    found = moment_bytes(optimizer, list(model.parameters()))
    assert found[False] == pytest.approx(held, abs=16)
    count = sum(p.numel() for p in model.parameters())
    assert found[True] == (8 * count if optimizer is AdafactorBigVision else found[False])


@pytest.mark.parametrize(
    ("engine", "parameters", "gradients", "optimizer"),
    [
        ("ddp", 80_613_184, 80_613_184, 161_226_416),
        ("zero1", 80_613_184, 40_311_040, 80_613_188 + 40_306_592),
        ("zero2", 80_613_184, 40_311_040, 80_613_188 + 40_306_592),
        ("zero3", 40_306_592, 40_306_592, 80_613_188 + 40_306_592),
    ],
)
def test_engine_bytes_equal_what_was_measured(engine: Any, parameters: int, gradients: int, optimizer: int) -> None:
    """Bytes of a real model of 20,153,296 parameters on two ranks in float32, under Lightning 2.6.6 and DeepSpeed 0.19.8."""
    held = engine_bytes(engine, 20_153_296, 161_226_416, 2, "32-true", 1, None, {"kept": 0})
    assert (held.parameters, held.gradients, held.optimizer) == pytest.approx((parameters, gradients, optimizer), rel=0.001)


def test_engine_bytes_of_bfloat16_under_zero_shard_float32_weights_and_moments() -> None:
    held = engine_bytes("zero2", 1000, 8000, 4, "bf16-mixed", 1, "gpu", {"kept": 7})
    assert (held.parameters, held.gradients, held.optimizer, held.ema) == (2000, 500, 3000, 1000)
    wide = engine_bytes("zero2", 1000, 8000, 4, "32-true", 1, "gpu", {"kept": 7})
    assert held.buffers == wide.buffers == 2 * 4 * BUCKET, "two of bfloat16, and a float32 one in which gradients are added up"
    assert engine_bytes("zero1", 1000, 8000, 4, "bf16-mixed", 2, "gpu", {"kept": 7}).gradients == 2000
    held = engine_bytes("ddp", 1000, 8000, 1, "bf16-mixed", 1, "gpu", {"kept": 7})
    assert (held.parameters, held.gradients, held.optimizer, held.ema, held.buffers, held.total("kept")) == (
        4000,
        4000,
        8000,
        4000,
        0,
        20007,
    )


def test_engine_bytes_of_offload_move_the_optimizer_to_the_host() -> None:
    held = engine_bytes("zero2_offload", 1000, 8000, 4, "bf16-mixed", 1, "gpu", {"kept": 7})
    assert (held.parameters, held.gradients, held.optimizer, held.ema) == (2000, 0, 0, 0)
    assert held.host == (4000 + 4000 + 8000) / 4 + 1000, "shards of weights, gradients and moments, and of the average"
    assert engine_bytes("zero2_offload", 1000, 8000, 4, "bf16-mixed", 2, None, {"kept": 7}).host == (4000 + 4000 + 8000 + 2000) / 4


@pytest.mark.parametrize(("engine", "average"), [("ddp", 4000), ("zero2", 1000)])
def test_engine_bytes_of_an_average_on_the_host_are_not_on_the_gpu(engine: Any, average: int) -> None:
    held, on_gpu = (engine_bytes(engine, 1000, 8000, 4, "bf16-mixed", 1, ema, {"kept": 7}) for ema in ("host", "gpu"))
    assert (held.ema, held.host, on_gpu.ema, on_gpu.host) == (0, average, average, 0)
    assert held.total("kept") == on_gpu.total("kept") - average
