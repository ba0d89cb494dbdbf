"""The tests that need a GPU: pytest -m gpu."""

import re
import subprocess
import sys

from benchmarks.gpu.bench import Bench, Figure, Missing, require


def measure(bench: Bench) -> None:
    bench.attempt("pytest -m gpu", lambda: _run(bench))


def _run(bench: Bench) -> dict[str, Figure]:
    bench.require_gpu()
    require("pytest")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=line", "-rfE", "-p", "no:cacheprovider", "tests"]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said[-2000:])}
    if not counts:
        raise Missing(f"no test ran: {said[-500:]}")
    failures = " ".join(re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE))
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return {"passed": counts.get("passed", 0), "failed": failed, "skipped": counts.get("skipped", 0), "names": failures}
