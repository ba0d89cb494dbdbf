"""The tests that need a GPU, pytest -m gpu, in one process: its imports take longer than most tests.

Only files that have such tests are collected, so a package that other tests import may be missing.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.bench import Bench, Figure, require

TESTS = Path("tests")
ALL = "pytest -m gpu"


def measure(bench: Bench) -> None:
    bench.attempt(ALL, lambda: _run(bench, gpu_files(TESTS)))


def gpu_files(folder: Path) -> list[Path]:
    """Return the files of tests that contain one for a GPU."""
    return [path for path in sorted(folder.rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text("utf-8")]


def _run(bench: Bench, files: Sequence[Path]) -> dict[str, Figure]:
    bench.require_gpu()
    require("pytest")
    return {"files": len(files), **count(run_tests(files))}


def run_tests(files: Sequence[Path]) -> str:
    """Run the GPU tests of files, and return the output. It is passed on at once, so that it is kept if this part is ended."""
    options = ["-m", "gpu", "-v", "--tb=short", "-rfE", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    said = bytearray()
    wide = {**os.environ, "COLUMNS": "300"}  # else pytest leaves out reasons that do not fit into 80 columns
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=wide) as process:
        while piece := process.stdout.read1(1 << 16):  # type: ignore[union-attr]
            said += piece
            sys.stdout.write(piece.decode("utf-8", "replace"))
            sys.stdout.flush()
    return said.decode("utf-8", "replace")


def count(said: str) -> dict[str, Figure]:
    """Return the counts, and names and reasons of failures, from pytest's output.

    Raises:
        RuntimeError: no test ran.
    """
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said[-2000:])}
    if not counts:
        raise RuntimeError(f"no test ran: {said[-500:]}")
    failures = "; ".join(re.findall(r"^(?:FAILED|ERROR) (.+)$", said, re.MULTILINE))
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return {"passed": counts.get("passed", 0), "failed": failed, "skipped": counts.get("skipped", 0), "failures": failures}
