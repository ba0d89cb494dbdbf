"""The step that a training should not be much slower than: loss, backward pass and optimiser of the same batch, and nothing else."""

import itertools

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import time_call
from benchmarks.gpu.experiments import compile_denoiser, fill_zeros, make_inputs
from benchmarks.gpu.stage_training import build_stage
from walt_pl.diffusion.objective import denoising_error
from walt_pl.diffusion.rng import PerSampleRNG

DRAWS = 16
"""Steps whose random draws are made beforehand: timesteps, noise, and the samples with a self-conditioning pass."""


def time_bare_step(bench: Bench, experiment: str, changes: dict[str, object], videos: int) -> float:
    """Return the seconds of a step of a base stage, blocks compiled, fused AdamW on a GPU. The self-conditioning pass is part of it."""
    stage = build_stage(experiment, {"denoiser": changes}).to(bench.device)
    config, fused = stage.denoiser.config, bench.device.type == "cuda"
    fill_zeros(stage.denoiser)
    compile_denoiser(stage.denoiser, bench.quick)
    x0, _, condition = make_inputs(config, videos, bench.device)
    index = torch.arange(videos, device=bench.device)
    draws = itertools.cycle([stage.draws(x0, condition.layout, PerSampleRNG(0, step, index)) for step in range(DRAWS)])
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-5, fused=fused)

    def step() -> None:
        with bench.autocast():
            loss = denoising_error(stage.denoiser, stage.path, x0, condition, next(draws)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return time_call(step, bench.device, bench.quick, warm_up=DRAWS)
