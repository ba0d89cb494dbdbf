"""Goals: the figure of a row, and the value that it should reach on one H100 or H200."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Goal:
    """A figure that should be at most or at least a value."""

    name: str
    part: str
    row: str
    figure: str
    sense: Literal["at most", "at least"]
    goal: float
    over: tuple[str, str] | None = None
    """Part and row whose figure the value is divided by."""


def _over_wan(name: str, row: str, wan: str) -> Goal:
    return Goal(name, "autoencoder", row, "frames_per_second", "at least", 1, ("other_autoencoders", f"Wan 2.1: {wan}"))


H100_GB = 80.0
GOALS = (
    Goal("SW attention, forward + backward, ms", "attention", "SW 1x16x16: triton", "ms", "at most", 1.1),
    Goal("STW attention, forward + backward, ms", "attention", "STW 5x8x8: triton", "ms", "at most", 1.4),
    Goal("SW attention, error of the table's gradient", "attention", "SW 1x16x16: triton", "table_error", "at most", 2e-2),
    Goal("STW attention, error of the table's gradient", "attention", "STW 5x8x8: triton", "table_error", "at most", 2e-2),
    Goal("L denoiser, forward + backward, ms", "denoiser_l", "compiled, triton", "ms", "at most", 175),
    Goal("L denoiser, share of GEMM", "denoiser_l", "compiled, triton", "gemm_share", "at least", 0.6),
    Goal("L denoiser in an H100's memory, GB", "denoiser_l", "compiled, triton", "peak_gb", "at most", H100_GB),
    Goal("XL denoiser in an H100's memory, GB", "denoiser_xl", "compiled, triton", "peak_gb", "at most", H100_GB),
    Goal("autoencoder: encoding, share of its convolutions", "autoencoder", "paper: encode", "convolution_share", "at least", 0.8),
    Goal("autoencoder: decoding, share of its convolutions", "autoencoder", "paper: decode", "convolution_share", "at least", 0.8),
    Goal("autoencoder: training, share of its convolutions", "autoencoder", "paper: train", "convolution_share", "at least", 0.8),
    Goal("autoencoder: training of 2 clips, GB", "autoencoder", "paper: train", "peak_gb", "at most", 18),
    _over_wan("light autoencoder: encoding, frames/s over Wan 2.1's", "light: encode", "encode"),
    _over_wan("autoencoder: encoding images, frames/s over Wan 2.1's", "paper: encode images", "encode images"),
    _over_wan("autoencoder: decoding images, frames/s over Wan 2.1's", "paper: decode images", "decode images"),
    Goal("sampling of one clip, seconds", "sampling", "1 clip, as shipped", "seconds", "at most", 0.5),
    Goal("sampling of 16 clips, share of GEMM", "sampling", "16 clips, as shipped", "gemm_share", "at least", 0.6),
    Goal("fit over the bare step", "fit", "bare step", "over_bare", "at most", 1.08),
    Goal("fit in an H100's memory, GB", "fit", "ucf101/base_l", "peak_gb", "at most", H100_GB),
    Goal("memory of fit over that of plan", "fit", "ucf101/base_l", "memory_over_plan", "at most", 1.1),
    Goal("memory of fit over that of plan, not below", "fit", "ucf101/base_l", "memory_over_plan", "at least", 0.9),
    Goal("base equal after a resume", "resume", "base, 2 + 2 steps", "equal", "at least", 1),
    Goal("autoencoder equal after a resume", "resume", "autoencoder, 2 + 2 steps", "equal", "at least", 1),
    Goal("float32 denoiser, sdpa, from the CPU's", "parity", "denoiser, sdpa, float32", "difference", "at most", 1e-5),
    Goal("float32 denoiser, triton, from the CPU's", "parity", "denoiser, triton, float32", "difference", "at most", 1e-5),
    Goal("float32 encoding, from the CPU's", "parity", "autoencoder, encode, float32", "difference", "at most", 1e-5),
    Goal("float32 decoding, from the CPU's", "parity", "autoencoder, decode, float32", "difference", "at most", 1e-5),
    Goal("failed tests of pytest -m gpu", "gpu_tests", "pytest -m gpu", "failed", "at most", 0),
)


def judge(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every goal with its value and whether it is met; None where it was not measured."""
    judged = []
    for goal in GOALS:
        value = _find(parts, goal.part, goal.row, goal.figure)
        if goal.over is not None:
            other = _find(parts, *goal.over, goal.figure)
            value = value / other if value is not None and other else None
        met = None if value is None else value <= goal.goal if goal.sense == "at most" else value >= goal.goal
        judged.append({**asdict(goal), "value": value, "met": met})
    return judged


def _find(parts: Mapping[str, Any], part: str, row: str, figure: str) -> float | None:
    rows = parts.get(part, {}).get("rows", [])
    return next((found[figure] for found in rows if found["row"] == row and figure in found), None)
