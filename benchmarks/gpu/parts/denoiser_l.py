"""Denoiser of ucf101/base_l, 32 videos, forward and backward: each attention, eager and compiled."""

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.denoiser_pass import measure_denoiser


def measure(bench: Bench) -> None:
    measure_denoiser(bench, "ucf101/base_l")
