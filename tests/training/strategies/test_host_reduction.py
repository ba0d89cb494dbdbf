"""Reductions over ranks without Lightning's barrier."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from walt_pl.training.strategies import reduction
from walt_pl.training.strategies.reduction import max_on_host, reduce, reduce_without_barrier


@pytest.fixture
def two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A group of this process that claims to be of two; the other rank has the number 5 everywhere."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    asked: list[Any] = []

    def all_reduce(tensor: torch.Tensor, op: Any, group: Any = None) -> None:
        asked.append(op)
        tensor.copy_(tensor + 5 if op == dist.ReduceOp.SUM else tensor.clamp(min=5))

    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "barrier", lambda *_, **__: pytest.fail("the host would wait for its GPU"))
    yield asked
    dist.destroy_process_group()


def test_reduce_of_a_strategy_has_no_barrier(two_ranks: list[Any]) -> None:
    strategy = DDPStrategy()
    reduce_without_barrier(strategy)
    value = torch.tensor(2.0)
    mean = strategy.reduce(value, reduce_op="mean")
    assert mean.item() == 3.5 and mean is value, "in place, as Lightning's"
    assert strategy.reduce(torch.tensor(2.0), reduce_op="sum").item() == 7
    assert strategy.reduce(torch.tensor([2, 9]), reduce_op="max").tolist() == [5, 9]
    assert strategy.reduce("text") == "text"
    assert two_ranks == [dist.ReduceOp.SUM, dist.ReduceOp.SUM, dist.ReduceOp.MAX]


def test_max_on_host_is_over_all_ranks(two_ranks: list[Any]) -> None:
    assert max_on_host(3, 9) == [5, 9]


def test_max_on_host_group_has_the_time_out_of_the_strategy(two_ranks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside NCCL it has a group of its own, and torch's default for that is half an hour."""
    asked: list[Any] = []
    monkeypatch.setattr(reduction, "_host_groups", [])
    monkeypatch.setattr(reduction, "_time_out", [None])
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "new_group", lambda **options: asked.append(options) or "group")
    reduce_without_barrier(DDPStrategy(timeout=timedelta(seconds=7)))
    assert max_on_host(9) == [9] and max_on_host(9) == [9]
    assert asked == [{"backend": "gloo", "timeout": timedelta(seconds=7)}]


def test_reduction_of_one_process_changes_nothing() -> None:
    strategy = SingleDeviceStrategy("cpu")
    own = strategy.reduce
    reduce_without_barrier(strategy)
    assert strategy.reduce == own and reduce(torch.tensor(2.0)).item() == 2 and max_on_host(3, False) == [3, 0]
