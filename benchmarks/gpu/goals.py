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


H100_GB = 80.0
GOALS = (
    Goal("SW attention, forward + backward, ms", "attention", "SW 1x16x16: triton", "ms", "at most", 1.1),
    Goal("STW attention, forward + backward, ms", "attention", "STW 5x8x8: triton", "ms", "at most", 1.4),
    Goal("L denoiser, forward + backward, ms", "denoiser_l", "compiled, triton", "ms", "at most", 175),
    Goal("L denoiser, share of GEMM", "denoiser_l", "compiled, triton", "gemm_share", "at least", 0.6),
    Goal("L denoiser in an H100's memory, GB", "denoiser_l", "compiled, triton", "peak_gb", "at most", H100_GB),
    Goal("XL denoiser in an H100's memory, GB", "denoiser_xl", "compiled, triton", "peak_gb", "at most", H100_GB),
    Goal("autoencoder: encoding, share of its convolutions", "autoencoder", "paper: encode", "convolution_share", "at least", 0.8),
    Goal("autoencoder: decoding, share of its convolutions", "autoencoder", "paper: decode", "convolution_share", "at least", 0.8),
    Goal("autoencoder: training, share of its convolutions", "autoencoder", "paper: train", "convolution_share", "at least", 0.8),
    Goal("autoencoder: training of 2 clips, GB", "autoencoder", "paper: train", "peak_gb", "at most", 18),
    Goal("sampling of one clip, seconds", "sampling", "1 clip, as shipped", "seconds", "at most", 0.5),
    Goal("sampling of 16 clips, share of GEMM", "sampling", "16 clips, as shipped", "gemm_share", "at least", 0.6),
    Goal("fit over the bare step", "fit", "ucf101/base_l", "over_bare", "at most", 1.08),
    Goal("fit in an H100's memory, GB", "fit", "ucf101/base_l", "peak_gb", "at most", H100_GB),
    Goal("memory of fit over that of plan", "fit", "ucf101/base_l", "memory_over_plan", "at most", 1.1),
    Goal("weights equal after a resume", "resume", "base, 2 + 2 steps", "equal", "at least", 1),
    Goal("failed tests of pytest -m gpu", "gpu_tests", "pytest -m gpu", "failed", "at most", 0),
)


def judge(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every goal with its value and whether it is met; None where it was not measured."""
    judged = []
    for goal in GOALS:
        rows = parts.get(goal.part, {}).get("rows", [])
        value = next((row[goal.figure] for row in rows if row["row"] == goal.row and goal.figure in row), None)
        met = None if value is None else value <= goal.goal if goal.sense == "at most" else value >= goal.goal
        judged.append({**asdict(goal), "value": value, "met": met})
    return judged
