"""Processes of `walt paper`: rows side by side, each with its share of the cores, in an order in which each finds its sources."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from walt_pl.paper.row import Row
from walt_pl.processes import exit_reason

Key = tuple[str, int | None]
"""Name of a row and its seed; None for the trainings that its seeds share."""
POLL = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Job:
    """A process to run: one row with one seed, or what its seeds share."""

    row: Row
    seed: int | None

    @property
    def key(self) -> Key:
        """Its row and seed."""
        return self.row.name, self.seed

    @property
    def needs(self) -> tuple[Key, ...]:
        """Jobs that come before it, if they are to be run at all."""
        if self.seed is None:
            return ()
        return (self.row.name, None), *((name, self.seed) for name in self.row.sources)

    def __str__(self) -> str:
        return f"{self.row.name}, {'shared by all seeds' if self.seed is None else f'seed {self.seed}'}"


def list_jobs(rows: Iterable[tuple[Row, int]]) -> list[Job]:
    """Return the jobs of rows with seeds: first what seeds share, then all rows seed by seed."""
    pairs = list(rows)
    shared = dict.fromkeys(row for row, _ in pairs if any(training.shared for training in row.trainings))
    # Seed by seed: a table that is interrupted has one seed of every row.
    return [*(Job(row, None) for row in shared), *(Job(row, seed) for row, seed in sorted(pairs, key=lambda pair: pair[1]))]


def run_jobs(jobs: Sequence[Job], count: int, start: Callable[[Job], subprocess.Popen[bytes]], after: Callable[[Job], None]) -> list[str]:
    """Run jobs, `count` side by side. A job that fails does not stop the others, save those that need it.

    Args:
        jobs: in the order of their starts.
        count: processes at once.
        start: starts the process of a job.
        after: called after each job that succeeds.

    Returns:
        A sentence for each job that failed.

    Raises:
        SystemExit: Ctrl-C; the processes were waited for, so that each has written its checkpoint.
    """
    pending, running, failed = list(jobs), dict[Key, tuple[Job, subprocess.Popen[bytes]]](), dict[Key, str]()
    try:
        while pending or running:
            for key, (job, process) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[key]
                if code:
                    failed[key] = f"{job} failed ({exit_reason(code)})"
                    print(f"paper: {failed[key]}", flush=True)
                else:
                    after(job)
            _start_ready(pending, running, failed, count, start)
            time.sleep(POLL)
    except KeyboardInterrupt:
        _wait(process for _, process in running.values())
        raise SystemExit("paper: interrupted; the same command goes on from there") from None
    except BaseException:  # the handler of SIGTERM raises SystemExit
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
        raise
    return list(failed.values())


def _start_ready(
    pending: list[Job],
    running: dict[Key, tuple[Job, subprocess.Popen[bytes]]],
    failed: dict[Key, str],
    count: int,
    start: Callable[[Job], subprocess.Popen[bytes]],
) -> None:
    """Start the first jobs whose needs are met while there is room, and drop those whose needs have failed."""
    for job in list(pending):
        if reason := next((failed[key] for key in job.needs if key in failed), None):
            pending.remove(job)
            failed[job.key] = f"{job} was not run, since {reason}"
            continue
        waits = {other.key for other in pending if other is not job} | set(running)
        if len(running) < count and not waits & set(job.needs):
            pending.remove(job)
            running[job.key] = (job, start(job))


def _wait(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Wait for processes that Ctrl-C has reached, too. A second Ctrl-C kills them."""
    waited = list(processes)
    try:
        for process in waited:
            process.wait()
    except KeyboardInterrupt:
        for process in waited:
            process.kill()
            process.wait()


def start_job(job: Job, words: Sequence[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start the process of a job. Its output is appended to a log.

    Args:
        job: the job.
        words: last words of all jobs, as `walt_pl.cli.paper_row` takes them.
        log: path of the log.
        threads: threads of the process and of its trainings.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    own = [job.row.name, str(job.seed or 0), str(job.seed is None).lower()]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "walt_pl.cli.paper_row", *own, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )


def end_by_signal() -> None:
    """Let SIGTERM end the command as an error does, so that the processes are ended, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("paper: terminated; the same command goes on"))
