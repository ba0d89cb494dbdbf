"""Forward and backward of a denoiser, in each way to compute it."""

import time
from dataclasses import replace

import torch
from torch import nn

from benchmarks.gpu.bench import LEFT_OUT, Bench, Figure, Missing
from benchmarks.gpu.clock import count_flops, time_call
from benchmarks.gpu.experiments import compile_denoiser, denoiser_config, fill_zeros, make_inputs, pass_over, plain_twin
from walt_pl.models.denoiser import Denoiser, DenoiserConfig

VIDEOS, QUICK_VIDEOS = 32, 2
WAYS = {
    "eager, sdpa": ("sdpa", False),
    "compiled, sdpa": ("sdpa", True),
    "compiled, math": ("math", True),
    "eager, triton": ("triton", False),
    "compiled, triton": ("triton", True),
}
"""Row -> attention, and whether the blocks are compiled. Triton is last: a kernel that faults leaves a context that can do nothing more."""
QUICK_COMPILED = ("ucf101/base_l", "sdpa")
"""Experiment and attention of the one compiled row of a quick run: each takes 5 s, and only shows that the code runs."""


def measure_denoiser(bench: Bench, experiment: str) -> None:
    """Add a row for each way to compute the denoiser of an experiment, for 32 videos."""
    config = denoiser_config(experiment, bench.quick)
    flops = step_flops(config, QUICK_VIDEOS if bench.quick else VIDEOS)

    def measure(attention: str, compiled: bool) -> dict[str, Figure]:
        check_attention(attention, bench)
        if bench.quick and compiled and (experiment, attention) != QUICK_COMPILED:
            raise Missing(LEFT_OUT)
        return _measure(bench, config, attention, compiled, flops)

    for row, (attention, compiled) in WAYS.items():
        bench.attempt(row, lambda attention=attention, compiled=compiled: measure(attention, compiled))


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


def check_gradients(model: nn.Module) -> None:
    """Raise ArithmeticError if a gradient is missing or all zero, since products with zeros take less power, and so less time."""
    zero = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    if zero:
        raise ArithmeticError(
            f"{len(zero)} gradients are missing or zero, such as that of {zero[0]}: the backward pass is not a training's"
        )


def _measure(bench: Bench, config: DenoiserConfig, attention: str, compiled: bool, flops: int) -> dict[str, Figure]:
    with bench.device:
        denoiser = Denoiser(replace(config, attention=attention))  # type: ignore[arg-type]
        inputs = make_inputs(config, QUICK_VIDEOS if bench.quick else VIDEOS, bench.device)
    fill_zeros(denoiser)
    if compiled:
        compile_denoiser(denoiser, bench.quick)

    def step() -> None:
        denoiser.zero_grad(set_to_none=True)
        with bench.autocast():
            pass_over(denoiser, *inputs)

    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    check_gradients(denoiser)
    seconds = time_call(step, bench.device, bench.quick)
    return {**bench.peak_gb(), **bench.speed(seconds, flops), "first_seconds": first}
