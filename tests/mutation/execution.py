"""Run tests on mutated copies of the tree, each in a fork of a process that has imported the large libraries already.

A start of Python that imports torch and Lightning costs five seconds, a fork costs none. This project's modules are imported in the fork
only, from the copy that the fork works in.
"""

import contextlib
import gc
import importlib
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.near_tests import LEFT_OUT, NearTests

IMPORTED = (
    "torch",
    "torchvision",
    "lightning.pytorch.cli",
    "torch.utils.tensorboard",
    "transformers",
    "hypothesis",
    "pyarrow.parquet",
    "timm.optim",
)
"""Libraries that take long to import and start no thread when they are."""
MARKERS = "not slow and not gpu"
FAILED_START = 70
"""Exit code of a process that did not come as far as pytest's own."""
MEMORY = 12 << 30
"""Bytes that a mutant may hold: a changed constant must not take the memory of the machine."""


@dataclass(frozen=True)
class Job:
    """Tests to run, on a mutated file or on the tree as it is."""

    name: str
    tests: tuple[NearTests, ...]
    seconds: float
    """Time after which it is stopped, of a core or by the clock."""
    file: str | None = None
    content: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """End of the tests of a job."""

    code: int | None
    """pytest's exit code; negative for a signal; None for too long."""
    test: str
    """First test that failed."""
    cpu: float
    """Processor seconds."""
    wall: float
    output: str

    @property
    def verdict(self) -> str:
        """``survived``, ``killed``, ``timeout`` (counts as killed), or ``broken`` where pytest itself could not work."""
        if self.code is None or self.code in (-signal.SIGXCPU, -signal.SIGKILL):
            return "timeout"
        return {0: "survived", 4: "broken", 5: "broken", FAILED_START: "broken"}.get(self.code, "killed")


_ages = itertools.count(10)


class Copies:
    """Private copies of a tree, one for each job that runs at a time, removed at the end. Compiled files stay in them from job to job."""

    def __init__(self, root: Path, workers: int) -> None:
        self.root = root
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", *LEFT_OUT)
        self.free = [self.folder / str(worker) / "tree" for worker in range(workers)]
        for path in self.free:
            # "data" is left out at the top only: walt_pl has a folder of that name.
            shutil.copytree(root, path, ignore=lambda folder, names: ignored(folder, names) if Path(folder) == root else ["__pycache__"])

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def run_jobs(copies: Copies, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
    """Run jobs, as many at a time as there are copies, and give each as it ends."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # pytest collects garbage several times, over all that was imported: half of a short test's time
    waiting, running = list(reversed(jobs)), []
    try:
        while waiting or running:
            while waiting and copies.free:
                running.append(_Running(waiting.pop(), copies.root, copies.free.pop()))
            time.sleep(0.02)
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                outcome = run.outcome()
                copies.free.append(run.copy)
                yield run.job, outcome
    finally:
        for run in running:
            run.stop()


class _Running:
    """A job in a process of its own."""

    def __init__(self, job: Job, root: Path, copy: Path) -> None:
        self.job, self.copy, self.log = job, copy, copy.parent / "log"
        self.file = copy / job.file if job.file is not None else None
        if self.file is not None:
            self.original, self.stat = self.file.read_bytes(), self.file.stat()
            self.file.write_bytes(job.content)
            # A time of its own: Python takes a compiled file for another source's by time and size, and sizes may be equal.
            os.utime(self.file, (self.stat.st_atime, self.stat.st_mtime + next(_ages)))
        self.begin, self.late = time.monotonic(), False
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _work(job, root, copy, self.log)

    def ended(self) -> bool:
        if time.monotonic() - self.begin > self.job.seconds and not self.late:
            self.late = True
            self._kill_group()
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self) -> None:
        self._kill_group()
        os.waitpid(self.pid, 0)

    def outcome(self) -> Outcome:
        self._kill_group()  # what its tests started
        _, status, usage = os.wait4(self.pid, 0)
        if self.file is not None:
            self.file.write_bytes(self.original)
            os.utime(self.file, ns=(self.stat.st_atime_ns, self.stat.st_mtime_ns))
        failed = self.copy.parent / "failed"
        test = failed.read_text() if failed.exists() else ""
        failed.unlink(missing_ok=True)
        shutil.rmtree(self.copy / ".hypothesis", ignore_errors=True)  # examples that failed for one mutant are not for the next
        code = None if self.late else os.waitstatus_to_exitcode(status)
        output = self.log.read_text(errors="replace")[-4000:]
        return Outcome(code, test, usage.ru_utime + usage.ru_stime, time.monotonic() - self.begin, output)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class _Watch:
    """Leave tests out, and write down the first that fails."""

    def __init__(self, tests: Sequence[NearTests], copy: Path) -> None:
        self.left_out = {(copy / near.path, name) for near in tests for name in near.left_out}
        self.failed = copy.parent / "failed"

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        out = [item for item in items if (item.path, getattr(item, "originalname", item.name)) in self.left_out]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self.failed.exists():
            self.failed.write_text(report.nodeid)


def _work(job: Job, root: Path, copy: Path, log: Path) -> None:
    """Run the tests in this process, and end it."""
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(job.seconds) + 1, int(job.seconds) + 5))
        os.chdir(copy)
        own = {path.name for path in copy.iterdir() if path.is_dir()}
        for name in [name for name in sys.modules if name.split(".")[0] in own]:
            del sys.modules[name]
        sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(root)))]
        sys.argv[:] = ["pytest"]
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio"]
        options = ["-x", "-q", *plugins, "-m", MARKERS, "--hypothesis-seed=0", "--tb=short", f"--basetemp={copy.parent / 'tmp'}"]
        files = [near.path for near in job.tests]
        code = pytest.main([*options, *files], plugins=[_Watch(job.tests, copy)])
        sys.stdout.flush()
        os._exit(int(code))
    finally:
        os._exit(FAILED_START)


@dataclass
class Results:
    """Results of earlier runs: a line of JSON for each job, written as it ends."""

    path: Path

    def __post_init__(self) -> None:
        self.lines: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            written, _, cut_off = self.path.read_text(encoding="utf-8").rpartition("\n")
            if cut_off:  # by an interruption
                os.truncate(self.path, len((written + "\n").encode()) if written else 0)
            for line in written.splitlines():
                entry = json.loads(line)
                self.lines[entry["key"]] = entry

    def add(self, key: str, **entry: object) -> None:
        self.lines[key] = {"key": key, **entry}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.lines[key]) + "\n")
