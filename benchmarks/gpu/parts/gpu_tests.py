"""The tests that need a GPU, pytest -m gpu: a row for each file that has some, and one for all of them.

Only these files are collected, so a package that other tests import may be missing.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.bench import Bench, Figure, require

TESTS = Path("tests")
ALL = "pytest -m gpu"
COUNTED = ("passed", "failed", "skipped")


def measure(bench: Bench) -> None:
    files = gpu_files(TESTS)
    seen: dict[Path, dict[str, Figure]] = {}
    for file in files:

        def run(file: Path = file) -> dict[str, Figure]:
            seen[file] = _run(bench, file)
            return seen[file]

        bench.attempt(str(file), run)
    bench.attempt(ALL, lambda: _sum(bench, files, seen.values()))


def gpu_files(folder: Path) -> list[Path]:
    """Return the files of tests that contain one for a GPU."""
    return [path for path in sorted(folder.rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text("utf-8")]


def _run(bench: Bench, file: Path) -> dict[str, Figure]:
    bench.require_gpu()
    require("pytest")
    return count(run_tests(file))


def _sum(bench: Bench, files: list[Path], rows: Iterable[dict[str, Figure]]) -> dict[str, Figure]:
    bench.require_gpu()
    ran = list(rows)
    if len(ran) < len(files):
        raise RuntimeError(f"{len(files) - len(ran)} of {len(files)} files did not run to their end")
    return {"files": len(ran), **{word: sum(int(row[word]) for row in ran) for word in COUNTED}}


def run_tests(file: Path) -> str:
    """Run the GPU tests of a file, and return the output. It is passed on at once, so that it is kept if this part is ended."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=line", "-rfE", "-p", "no:cacheprovider", str(file)]
    said = bytearray()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while piece := process.stdout.read1(1 << 16):  # type: ignore[union-attr]
            said += piece
            sys.stdout.write(piece.decode("utf-8", "replace"))
            sys.stdout.flush()
    return said.decode("utf-8", "replace")


def count(said: str) -> dict[str, Figure]:
    """Return the counts and the names of failures from pytest's output.

    Raises:
        RuntimeError: no test ran.
    """
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said[-2000:])}
    if not counts:
        raise RuntimeError(f"no test ran: {said[-500:]}")
    failures = " ".join(re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE))
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return {"passed": counts.get("passed", 0), "failed": failed, "skipped": counts.get("skipped", 0), "names": failures}
