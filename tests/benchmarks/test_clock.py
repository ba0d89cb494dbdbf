"""The clock of benchmarks/gpu: device time by replays of a CUDA graph."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.gpu import clock

GPU = torch.device("cuda")


def work() -> None: ...


def replay() -> None: ...


@pytest.mark.parametrize("captured", [True, False])
def test_time_replays_times_the_call_itself_where_capture_fails(monkeypatch: pytest.MonkeyPatch, captured: bool) -> None:
    def record(call: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
        if not captured:
            raise RuntimeError("operation not permitted when stream is capturing")
        return replay, call()

    monkeypatch.setattr(clock, "record_cuda_graph", record)
    monkeypatch.setattr(clock, "time_call", lambda call, device: {replay: 1.0, work: 2.0}[call])
    assert clock.time_replays(work, GPU) == ((1.0, "replays") if captured else (2.0, "calls"))


def test_time_replays_passes_a_lack_of_memory_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(call: Callable[[], Any], device: torch.device) -> None:
        raise torch.OutOfMemoryError("40 GB")

    monkeypatch.setattr(clock, "record_cuda_graph", record)
    with pytest.raises(torch.OutOfMemoryError):
        clock.time_replays(work, GPU)


def test_time_replays_on_a_cpu_times_calls() -> None:
    seconds, timed = clock.time_replays(lambda: time.sleep(0.01), torch.device("cpu"))
    assert seconds >= 0.01 and timed == "calls"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs exist on a GPU alone")
def test_time_replays_leaves_out_the_time_to_launch() -> None:
    """Python waits 20 ms between the kernels of a call. Their work takes some microseconds."""
    x = torch.ones(1024, device=GPU, requires_grad=True)

    def call() -> None:
        x.grad = None
        y = (3 * x).sum()
        time.sleep(0.02)
        y.backward()

    seconds, timed = clock.time_replays(call, GPU)
    assert timed == "replays" and seconds < 5e-3
    assert x.grad is not None and torch.equal(x.grad, torch.full_like(x, 3))
