"""Sampling of latents with the L model: 50 steps with guidance, 1 clip and 16, from noise to raw latents.

"as shipped" is the sampler alone, "blocks compiled" with the layers compiled before.
"""

from benchmarks.gpu.bench import LEFT_OUT, Bench, Figure, Missing
from benchmarks.gpu.clock import time_call
from benchmarks.gpu.denoiser_pass import step_flops
from benchmarks.gpu.experiments import compile_denoiser, denoiser_config, fill_zeros, make_inputs
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.sampling.stage_sampler import StageSampler

STEPS, QUICK_STEPS = 50, 2
CLIPS = {1: 1, 16: 2}
"""Clips, and those of a quick run."""


def measure(bench: Bench) -> None:
    for row, compiled in (("as shipped", False), ("blocks compiled", True)):
        for clips, few in CLIPS.items():
            name = f"{clips} clip{'s' if clips > 1 else ''}, {row}"
            bench.attempt(name, lambda n=few if bench.quick else clips, compiled=compiled: _measure(bench, n, compiled))


def _measure(bench: Bench, clips: int, compiled: bool) -> dict[str, Figure]:
    config, steps = denoiser_config("ucf101/base_l", bench.quick), QUICK_STEPS if bench.quick else STEPS
    if bench.quick and compiled:
        raise Missing(LEFT_OUT)
    with bench.device:
        denoiser = Denoiser(config).eval()
        fill_zeros(denoiser)
    if compiled:
        compile_denoiser(denoiser, bench.quick)
    sampler = StageSampler(denoiser, DiffusionConfig(), LatentNormalizer.identity(config.latent_channels))
    noise, _, condition = make_inputs(config, clips, bench.device)

    def sample() -> None:
        with bench.autocast():
            sampler.sample(condition, noise, steps, Guidance(scale=2.0))

    seconds = time_call(sample, bench.device, bench.quick, warm_up=1)
    peak = bench.peak_gb()
    return {"seconds": seconds, **bench.speed(seconds, 2 * steps * step_flops(config, clips, backward=False)), **peak, "clips": clips}
