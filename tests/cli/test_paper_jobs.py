"""Order, failures and interruption of the processes of `walt paper`."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from walt_pl.cli.paper_jobs import Job, list_jobs, run_jobs, start_job
from walt_pl.paper.row import Row, Training, find_row
from walt_pl.paper.rows import ROWS


def row(name: str, *needs: str, shared: bool = False) -> Row:
    """Return a row whose training takes the time of the rows that it needs."""
    time_of, pace_of = (*needs, *needs[-1:])[:2] if needs else ("", "")
    return Row(name, "ablations", name, (Training("base", shared=shared, time_of=time_of, pace_of=pace_of),), "prompts")


class Log:
    """Starts of processes that end at once, with their order and the largest number at once."""

    def __init__(self, codes: dict[str, int], seconds: float = 0.05) -> None:
        self.codes = codes
        self.seconds = seconds
        self.order: list[str] = []
        self.done: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.most = 0

    def start(self, job: Job) -> "subprocess.Popen[bytes]":
        self.order.append(f"{job.row.name}{job.seed}")
        code = f"import time, sys; time.sleep({self.seconds}); sys.exit({self.codes.get(job.row.name, 0)})"
        self.processes.append(subprocess.Popen([sys.executable, "-S", "-c", code]))
        # Those that run_jobs has not seen end: some may have ended on a busy machine.
        self.most = max(self.most, sum(process.returncode is None for process in self.processes))
        return self.processes[-1]

    def after(self, job: Job) -> None:
        self.done.append(f"{job.row.name}{job.seed}")


def interrupting(log: Log, name: signal.Signals) -> Callable[[Job], "subprocess.Popen[bytes]"]:
    """Return `log.start` that sends this process a signal 0.3 s after the first start."""

    def start(job: Job) -> "subprocess.Popen[bytes]":
        process = log.start(job)
        if len(log.processes) == 1:
            threading.Timer(0.3, os.kill, (os.getpid(), name)).start()
        return process

    return start


def test_list_jobs_begins_with_what_seeds_share_and_goes_seed_by_seed() -> None:
    pairs = [(one, seed) for one in (row("a"), row("b", shared=True)) for seed in (0, 1)]
    assert [str(job) for job in list_jobs(pairs)] == ["b, shared by all seeds", "a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]


def test_run_jobs_starts_a_row_after_those_it_needs() -> None:
    log = Log({})
    jobs = [Job(row("c", "a", "b"), 0), Job(row("a"), 0), Job(row("b", shared=True), 0), Job(row("b", shared=True), None)]
    assert run_jobs(jobs, 2, log.start, log.after) == []
    assert log.order == ["a0", "bNone", "b0", "c0"] and sorted(log.done) == ["a0", "b0", "bNone", "c0"] and log.most == 2


def test_run_jobs_failure_stops_only_the_rows_that_need_it() -> None:
    log = Log({"a": 3})
    failed = run_jobs([Job(row(*names), 0) for names in (("a",), ("b", "a"), ("c", "b"), ("d",))], 1, log.start, log.after)
    assert log.done == ["d0"] and log.most == 1
    assert failed == [
        "a, seed 0 failed (exit code 3)",
        "b, seed 0 was not run, since a, seed 0 failed (exit code 3)",
        "c, seed 0 was not run, since b, seed 0 was not run, since a, seed 0 failed (exit code 3)",
    ]


def test_run_jobs_waits_for_the_processes_after_ctrl_c() -> None:
    log = Log({}, seconds=3.0)
    with pytest.raises(SystemExit, match="interrupted; the same command goes on from there"):
        run_jobs([Job(row("a"), 0), Job(row("b"), 0)], 1, interrupting(log, signal.SIGINT), log.after)
    assert log.order == ["a0"] and log.processes[0].poll() == 0, "it came to its own end"


def test_run_jobs_ends_the_processes_with_the_command() -> None:
    log = Log({}, seconds=30.0)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("paper: terminated"))
    began = time.monotonic()
    try:
        with pytest.raises(SystemExit, match="paper: terminated"):
            run_jobs([Job(row("a"), 0)], 1, interrupting(log, signal.SIGTERM), log.after)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert log.processes[0].poll() == -signal.SIGTERM and time.monotonic() - began < 20


def test_start_job_gives_threads_and_keeps_the_output_of_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $@"\n')
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    for seed in (2, None):
        assert start_job(Job(find_row("latent_channels_4", ROWS), seed), ["x", "y"], tmp_path / "logs" / "a.log", 3).wait() == 0
    said = "3 -m walt_pl.cli.paper_row latent_channels_4"
    assert (tmp_path / "logs" / "a.log").read_text() == f"{said} 2 false x y\n{said} 0 true x y\n"
