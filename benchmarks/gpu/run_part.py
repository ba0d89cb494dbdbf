"""Run a part in a process of its own, with a time limit."""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from typing import Any

from benchmarks.gpu.one_part import measure
from benchmarks.gpu.report import describe_parts
from walt_pl.plain_text import split_lines
from walt_pl.untrusted import parse_json

TAIL = 25
"""Last lines that are kept of a part that ends badly."""
IMPORTED = ["torch._dynamo", "benchmarks.gpu.stage_training"]
"""Modules that the processes of a quick run share: to import them in each would be most of it."""


def run_part(name: str, quick: bool, limit: float) -> dict[str, Any]:
    """Return purpose, state, seconds, rows, skipped and failed rows, and error of a part (see the docstring of the package).

    Args:
        name: of a file in benchmarks/gpu/parts/.
        quick: tiny sizes on the CPU.
        limit: seconds after which the part and all that it started are ended.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="walt-gpu-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        rows, said = folder / "rows.jsonl", folder / "said"
        process = _start(name, rows, folder, quick)
        process.join(limit)
        ended = "timeout" if process.exitcode is None else "failed" if process.exitcode else "done"
        _end(process)
        lines = [parse_json(line, str(rows)) for line in split_lines(rows.read_text("utf-8"))] if rows.exists() else []
        tail = split_lines(said.read_text("utf-8", errors="replace"))[-TAIL:] if said.exists() else []
    # A row may have figures called failed and skipped: counts of tests. Only a row has a name under "row".
    without = [line for line in lines if "row" not in line]
    failed = {line["failed"]: line["reason"] for line in without if "failed" in line}
    return {
        "purpose": describe_parts().get(name, ""),
        "state": "failed" if failed and ended == "done" else ended,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": [line for line in lines if "row" in line],
        "skipped": {line["skipped"]: line["reason"] for line in without if "skipped" in line},
        "failed": failed,
        "error": "" if ended == "done" else "\n".join(tail),
    }


def _start(name: str, rows: Path, folder: Path, quick: bool) -> ForkServerProcess | SpawnProcess:
    # A process forked from one that uses a GPU could not use it, so parts that need one start from nothing.
    context = multiprocessing.get_context("forkserver" if quick else "spawn")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=measure, args=(name, rows, folder, quick))
    process.start()
    return process


def _end(process: ForkServerProcess | SpawnProcess) -> None:
    """End a part and the processes that it started, which share its session."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left, or it ended before it had a session
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
