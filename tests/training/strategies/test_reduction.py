"""Gradients of bfloat16 weights are added up over ranks in float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import engine_training as training
from tests.helpers.engine_training import Job, start

COLLECTIVES = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
ENGINES = ("zero1", "zero2", "zero3", "zero2_offload")


def run(job: Job, folder: Path, rank: int, ranks: int) -> None:
    """Train, and write down the dtypes of all that is reduced in a backward pass."""
    from deepspeed.comm.torch import TorchBackend
    from deepspeed.runtime.engine import DeepSpeedEngine

    seen: set[str] = set()
    backward, plain, inside = DeepSpeedEngine.backward, {name: getattr(TorchBackend, name) for name in COLLECTIVES}, []

    def spied_backward(self: Any, *arguments: Any, **more: Any) -> Any:
        inside.append(True)
        try:
            return backward(self, *arguments, **more)
        finally:
            inside.pop()

    def spied(works: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*tensors: Any, **more: Any) -> Any:
            tensor = next(x for x in (*tensors, *more.values()) if isinstance(x, torch.Tensor))
            if inside and tensor.numel() > 1:
                seen.add(str(tensor.dtype))
            return works(*tensors, **more)

        return collective

    DeepSpeedEngine.backward = spied_backward
    for name, works in plain.items():
        setattr(TorchBackend, name, spied(works))
    try:
        training.run(job, folder, rank, ranks)
    finally:
        DeepSpeedEngine.backward = backward
        for name, works in plain.items():
            setattr(TorchBackend, name, works)
    if rank == 0:
        (folder / "dtypes.json").write_text(json.dumps(sorted(seen)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reduced")
    start(folder, 2, *(Job(engine, engine, steps=3, precision="bf16-mixed") for engine in ENGINES), run=run)
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_strategy_reduces_gradients_of_bfloat16_weights_in_float32(folder: Path, engine: str) -> None:
    assert json.loads((folder / engine / "dtypes.json").read_text()) == ["torch.float32"]
