"""The surroundings of a part: device, sizes, and the rows that it gives."""

import gc
import importlib.util
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu.clock import time_call
from walt_pl.blocks.compute import compute_dtype

Figure = float | int | str
LEFT_OUT = "left out of quick runs: another row runs the same code"
GEMM_SIDE, QUICK_GEMM_SIDE = 8192, 256


class Missing(Exception):
    """A package, a device or a version that a row needs. The message names it."""


class Bench:
    """Device, sizes and rows of one part.

    Args:
        rows: file to append rows to, a line of JSON each. They survive the end of the process.
        folder: folder for the part's files.
        quick: tiny sizes on the CPU.
    """

    def __init__(self, rows: Path, folder: Path, quick: bool) -> None:
        self.rows = rows
        self.folder = folder
        self.quick = quick
        self.device = torch.device("cpu" if quick or not torch.cuda.is_available() else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of autocast; float32 on CPUs that only emulate bfloat16."""
        return compute_dtype(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @cached_property
    def gemm_tflops(self) -> float:
        """TFLOP/s of a square matrix product, the ceiling of this process."""
        side = QUICK_GEMM_SIDE if self.quick else GEMM_SIDE
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / time_call(lambda: a @ b, self.device, self.quick) / 1e12

    def speed(self, seconds: float, flops: float) -> dict[str, Figure]:
        """Figures of one call: milliseconds, TFLOP/s and the share of the matrix product."""
        tflops = flops / seconds / 1e12
        return {"ms": 1e3 * seconds, "tflops": tflops, "gemm_share": tflops / self.gemm_tflops}

    def peak_gb(self) -> dict[str, Figure]:
        """Figure of the allocator's peak since `forget`; none on a CPU."""
        return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if self.device.type == "cuda" else {}

    def add(self, row: str, **figures: Figure) -> None:
        """Write a row down at once."""
        self._write({"row": row, **{name: _round(value) for name, value in figures.items()}})

    def skip(self, row: str, reason: str) -> None:
        self._write({"skipped": row, "reason": reason})

    def fail(self, row: str, reason: str) -> None:
        self._write({"failed": row, "reason": reason})

    def attempt(self, row: str, measure: Callable[[], dict[str, Figure]]) -> None:
        """Add the figures of a row, or the reason why there are none. The memory is free afterwards.

        A row is skipped for what this machine lacks, a package or a device. Every other error is a failure.
        """
        self.forget()
        try:
            figures = measure()
        except (Missing, ModuleNotFoundError) as error:
            self.skip(row, str(error))
        except Exception as error:  # one way to compute that fails, by memory or by its compiler, must not cost the other rows
            self.fail(row, f"{type(error).__name__}: {str(error)[:500]}")
        else:
            self.add(row, **figures)
        self.forget()

    def forget(self) -> None:
        """Release memory, and begin a new peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def require_gpu(self) -> None:
        if self.device.type != "cuda":
            raise Missing("needs a GPU")

    def _write(self, line: dict[str, Figure]) -> None:
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def require(package: str) -> None:
    """Raise Missing if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Missing(f"the package {package} is not installed")


def _round(value: Figure) -> Figure:
    """Four digits are more than a repetition gives."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
