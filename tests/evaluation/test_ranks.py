"""Processes of an evaluation agree on their blocks without a word, and a single one needs nothing."""

import pytest
import torch
import torch.distributed as dist

from tests.helpers.measured_clips import fail_or_wait
from tests.helpers.starts import launch
from walt_pl.evaluation.ranks import Ranks, local_device


def test_ranks_share_every_block_once() -> None:
    shares = [Ranks(rank, 3).share(range(10)) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]] and Ranks(1, 2).share([1, 4, 5]) == [1, 5]


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_ranks_of_a_single_process_connect_with_nothing(environment: dict[str, str]) -> None:
    ranks = Ranks.from_environment(environment)
    ranks.barrier()
    assert ranks == Ranks(0, 1) and ranks.is_first and not dist.is_initialized()


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "x"}])
def test_ranks_refuse_half_an_environment(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="wanted a number; start several processes with torchrun"):
        Ranks.from_environment(environment)


def test_ranks_barrier_ends_when_another_process_fails() -> None:
    started = launch(fail_or_wait, ranks=2)
    assert started.wait() == 1 and "another process of the evaluation has ended" in started.said
    assert started.ranks[1].exitcode == 3


def test_local_device_gives_each_process_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [local_device(None, {"LOCAL_RANK": str(rank)}) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert local_device("cuda:1", {}) == "cuda:1" and local_device("cpu", {"LOCAL_RANK": "1"}) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device(None, {}) == "cpu"
    with pytest.raises(ValueError, match="found no GPU on this machine"):
        local_device("cuda", {})
    with pytest.raises(ValueError, match="wanted cpu, cuda"):
        local_device("abacus", {})
