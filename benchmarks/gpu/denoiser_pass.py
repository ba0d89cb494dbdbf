"""Forward and backward of a denoiser, in each way to compute it."""

import time
from dataclasses import replace

import torch

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.clock import count_flops, time_call
from benchmarks.gpu.experiments import compile_denoiser, denoiser_config, make_inputs, pass_over, plain_twin
from walt_pl.models.denoiser import Denoiser, DenoiserConfig

VIDEOS, QUICK_VIDEOS = 32, 2
WAYS = {
    "eager, sdpa": ("sdpa", False),
    "eager, triton": ("triton", False),
    "compiled, sdpa": ("sdpa", True),
    "compiled, math": ("math", True),
    "compiled, triton": ("triton", True),
}
"""Row -> attention, and whether the blocks are compiled."""


def measure_denoiser(bench: Bench, experiment: str) -> None:
    """Add a row for each way to compute the denoiser of an experiment, for 32 videos."""
    config = denoiser_config(experiment, bench.quick)
    flops = step_flops(config, QUICK_VIDEOS if bench.quick else VIDEOS)
    for row, (attention, compiled) in WAYS.items():
        bench.attempt(row, lambda attention=attention, compiled=compiled: _measure(bench, config, attention, compiled, flops))


def step_flops(config: DenoiserConfig, videos: int, backward: bool = True) -> int:
    """Return the operations of a pass, counted on the meta device."""
    with torch.device("meta"):
        denoiser, inputs = Denoiser(plain_twin(config)), make_inputs(config, videos, "meta")
    with torch.set_grad_enabled(backward):
        return count_flops(lambda: pass_over(denoiser, *inputs, backward=backward))


def check_attention(name: str, bench: Bench) -> None:
    """Raise Missing if this device has no such attention."""
    if name == "triton":
        bench.require_gpu()


def _measure(bench: Bench, config: DenoiserConfig, attention: str, compiled: bool, flops: int) -> dict[str, Figure]:
    check_attention(attention, bench)
    with bench.device:
        denoiser = Denoiser(replace(config, attention=attention))  # type: ignore[arg-type]
        inputs = make_inputs(config, QUICK_VIDEOS if bench.quick else VIDEOS, bench.device)
    if compiled:
        compile_denoiser(denoiser, bench.quick)

    def step() -> None:
        with bench.autocast():
            pass_over(denoiser, *inputs)
        denoiser.zero_grad(set_to_none=True)

    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    seconds = time_call(step, bench.device, bench.quick)
    return {**bench.peak_gb(), **bench.speed(seconds, flops), "first_seconds": first}
