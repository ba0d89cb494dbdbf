"""Run a part in a process of its own, with a time limit."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from walt_pl.plain_text import split_lines
from walt_pl.untrusted import parse_json

TAIL = 25
"""Lines of stderr that are kept of a part that ends badly."""


def run_part(name: str, quick: bool, limit: float) -> dict[str, Any]:
    """Return state, seconds, rows, skipped rows and error of a part (see the docstring of the package).

    Args:
        name: of a file in benchmarks/gpu/parts/.
        quick: tiny sizes on the CPU.
        limit: seconds after which the part and all that it started are ended.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="walt-gpu-", ignore_cleanup_errors=True) as folder:
        rows, errors = Path(folder) / "rows.jsonl", Path(folder) / "stderr"
        command = [sys.executable, "-m", "benchmarks.gpu.one_part", name, str(rows), folder, *(["quick"] if quick else [])]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stderr, stderr=stderr, start_new_session=True, env=_environment(quick))
            try:
                state = "failed" if process.wait(limit) else "done"
            except subprocess.TimeoutExpired:
                state = "timeout"
            finally:
                _end(process)
        lines = [parse_json(line, str(rows)) for line in split_lines(rows.read_text("utf-8"))] if rows.exists() else []
        tail = split_lines(errors.read_text("utf-8", errors="replace"))[-TAIL:]
    return {
        "state": state,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": [line for line in lines if "row" in line],
        "skipped": {line["skipped"]: line["reason"] for line in lines if "skipped" in line},
        "error": "" if state == "done" else "\n".join(tail),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and the processes that it started, which share its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _environment(quick: bool) -> dict[str, str]:
    chosen = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if quick else {}
    return {**os.environ, **chosen, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
