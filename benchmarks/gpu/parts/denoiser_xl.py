"""Denoiser of ucf101/base_xl, 32 videos, forward and backward: each attention, eager and compiled.

Its layers are recomputed in the backward pass as the experiment says; operations that run twice count once.
"""

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.denoiser_pass import measure_denoiser


def measure(bench: Bench) -> None:
    measure_denoiser(bench, "ucf101/base_xl")
