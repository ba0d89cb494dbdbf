"""Speed in the log: operations a second, their share of the peak, and the memory of a GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from walt_pl.training.callbacks import throughput
from walt_pl.training.callbacks.throughput import Throughput


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(videos: int) -> Any:
    return SimpleNamespace(videos=torch.zeros(videos, 8, 3, 4, 4), images=torch.zeros(0, 8, 1, 4, 4))


def logged_after(
    batches: list[Any], flops: dict[int, float | None], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], list[int]]:
    """Values after steps of 2 seconds each, of which each value may count one; and the sizes of the batches that were counted."""
    clock, counted, logged = Clock(), list[int](), dict[str, Tensor]()

    def count(stage: Any, batch: Any, step: int) -> float | None:
        counted.append(len(batch.videos))
        clock.now += 100  # counting takes time that no value may contain
        return flops[len(batch.videos)]

    monkeypatch.setattr(throughput.time, "perf_counter", clock)
    monkeypatch.setattr(throughput, "step_flops", count)
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 1e12)
    speed, trainer = Throughput(every_n_steps=2), SimpleNamespace(global_step=0, world_size=2, precision="32-true")
    trainer.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
    stage: Any = SimpleNamespace(device=torch.device("cpu"), log_dict=logged.update)
    speed.on_train_start(trainer, stage)  # type: ignore[arg-type]
    for one in batches:
        speed.on_train_batch_start(trainer, stage, one, 0)  # type: ignore[arg-type]
        clock.now += 2
        trainer.global_step += 1
        speed.on_train_batch_end(trainer, stage, None, one, 0)  # type: ignore[arg-type]
    return logged, counted


def test_throughput_logs_this_ranks_operations_over_the_time_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    logged, counted = logged_after([batch(1), batch(3), batch(3), batch(3)], {1: 1e12, 3: 3e12}, monkeypatch)
    assert counted == [1, 3], "each shape once"
    assert logged["speed/tflops_per_gpu"].item() == pytest.approx(6 / 4)
    assert logged["speed/mfu"].item() == pytest.approx(6 / 4 / 1)
    assert logged["speed/clips_per_second"].item() == pytest.approx(2 * 6 / 4), "of both ranks"
    assert "speed/gpu_memory_gb" not in logged, "there is no GPU"


def test_throughput_logs_no_rate_of_a_stage_whose_operations_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    logged, _ = logged_after([batch(1), batch(3)], {1: 1e12, 3: None}, monkeypatch)
    assert "speed/tflops_per_gpu" not in logged and "speed/mfu" not in logged and "speed/clips_per_second" in logged


def test_throughput_logs_tensors_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning sends plain numbers to the device of the stage, and waits for that."""
    logged, _ = logged_after([batch(1), batch(1)], {1: 1e12}, monkeypatch)
    assert all(isinstance(value, Tensor) and value.device.type == "cpu" for value in logged.values())


@pytest.mark.parametrize(("device", "speeds"), [("cpu", 2), ("cuda", 1)])
def test_throughput_logs_once_a_step_and_no_speed_of_a_gpus_first_ones(device: str, speeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches are accumulated for a step. The first interval of a GPU contains its compilation."""
    monkeypatch.setattr(Throughput, "_utilisation", lambda *_: {})
    logged: list[dict[str, Tensor]] = []
    speed: Any = Throughput(every_n_steps=1)
    stage = SimpleNamespace(device=torch.device(device), log_dict=logged.append)
    trainer = SimpleNamespace(global_step=0, world_size=1, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    speed.on_train_start(trainer, stage)
    for step in (0, 1, 1, 2):
        trainer.global_step = step
        speed.on_train_batch_end(trainer, stage, None, batch(1), 0)
    assert len(logged) == 2
    assert sum("speed/clips_per_second" in values for values in logged) == speeds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="reads the allocator of a GPU, and this machine has none")
def test_throughput_logs_the_peak_memory_since_the_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "step_flops", lambda stage, batch, step: None)
    logged, device = dict[str, Tensor](), torch.device("cuda")
    speed: Any = Throughput(every_n_steps=1)
    stage = SimpleNamespace(device=device, log_dict=logged.update)
    trainer = SimpleNamespace(global_step=0, world_size=1, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    held = torch.empty(10**9, dtype=torch.uint8, device=device)

    def step() -> None:
        trainer.global_step += 1
        speed.on_train_batch_end(trainer, stage, None, batch(1), 0)

    speed.on_train_start(trainer, stage)
    step()
    step()
    assert logged["speed/gpu_memory_gb"].item() >= 1
    del held
    step()
    step()
    assert logged["speed/gpu_memory_gb"].item() < 1
