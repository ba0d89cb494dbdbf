"""Run jobs in processes of their own, each with a time limit. A decoder that hangs or crashes affects only its own file."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from walt_pl.processes import exit_reason, is_stopped

Job = TypeVar("Job")
Result = TypeVar("Result")

# No real file needs so much. A damaged header may ask for more memory than the machine has.
_MEMORY = 8 << 30
START = 300.0
"""Seconds until a process answers for the first time, after its imports; then another one is started."""
_STARTS = 3
_STOPPED = "stopped"


@dataclass(frozen=True)
class LostJob:
    """The outcome of a job whose process was killed by this pool or by the system."""

    finding: str
    """"hang" or "crash"; "stopped" inside this module: the process was stopped by a signal, and the job is not to blame."""
    reason: str
    """The reason in words, without the finding."""


def run_isolated(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    seconds: Callable[[Job], float],
    retry: Callable[[Job], Job | None] = lambda job: None,
) -> Iterator[tuple[Job, Result | LostJob]]:
    """Yield each job with its result, in the order in which they finish, from `workers` processes.

    A job that takes longer than its `seconds` is killed. The standard error of the processes is dropped: decoders complain about every
    bad byte.

    Args:
        function: Function of a module, so that another process can import it.
        jobs: Jobs. They are consumed as workers become free.
        workers: Number of processes, at least 1.
        seconds: Returns the time limit of a job in seconds, from when its process begins it.
        retry: Returns the job that replaces a lost job; None: the job stays lost.

    Raises:
        Exception: An exception that `function` raises.
    """
    first, again = iter(jobs), deque[Job]()
    pool: list[_Worker[Job, Result]] = [_Worker(function) for _ in range(workers)]
    try:
        while True:
            for worker in pool:
                if worker.free and (job := again.popleft() if again else next(first, None)) is not None:
                    worker.give(job, seconds(job))
            busy = [worker for worker in pool if not worker.free]
            if not busy:
                return
            wait([worker.connection for worker in busy], max(0.0, min(worker.deadline for worker in busy) - time.monotonic()))
            for worker in busy:
                outcome = worker.outcome()
                if outcome is None:
                    continue
                job = worker.take()
                if isinstance(outcome, LostJob):
                    pool[pool.index(worker)] = _Worker(function)
                    worker.end()
                    if outcome.finding == _STOPPED:
                        warnings.warn(f"{outcome.reason}: another one takes its file", stacklevel=2)
                        again.append(job)
                        continue
                    if (other := retry(job)) is not None:
                        again.append(other)
                        continue
                yield job, outcome
    finally:
        for worker in pool:
            worker.end()


class _Worker(Generic[Job, Result]):
    """One process, and its present job."""

    def __init__(self, function: Callable[[Job], Result]) -> None:
        self._function = function
        self._started = False
        self._job: Job | None = None
        self.deadline = math.inf
        self._start()

    def _start(self) -> None:
        # spawn, because native decoders do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        self._process.start()
        theirs.close()

    def _await_start(self) -> None:
        """Wait until the process has imported what it needs, and replace one that never does."""
        for _ in range(_STARTS):
            if self.connection.poll(START):
                break
            warnings.warn(f"process {self._process.pid} did not begin within {START:.0f} seconds: another one is started", stacklevel=4)
            self.end()
            self._start()
        else:
            raise RuntimeError(f"{_STARTS} worker processes in a row did not begin: is the machine out of memory?")
        try:
            self.connection.recv()  # the time limit of a job must not include the imports
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a worker process ended before it began ({exit_reason(self._process.exitcode)})") from None

    @property
    def free(self) -> bool:
        return self._job is None

    def give(self, job: Job, seconds: float) -> None:
        if not self._started:
            self._await_start()
            self._started = True
        self._job = job
        with suppress(BrokenPipeError):  # it died after its last answer; `outcome` notices that
            self.connection.send(job)
        self._seconds = seconds
        self.deadline = time.monotonic() + seconds

    def take(self) -> Job:
        assert self._job is not None
        job, self._job = self._job, None
        return job

    def outcome(self) -> Result | LostJob | None:
        """Return the result of the job, or None while it runs."""
        if self.connection.poll():
            try:
                done, outcome = self.connection.recv()
            except (EOFError, OSError):
                self._process.join()
                return LostJob("crash", f"its decoder ended the process with {_cause(self._process.exitcode)}")
            if not done:
                raise outcome
            return outcome
        if time.monotonic() > self.deadline:
            if is_stopped(self._process.pid):
                return LostJob(_STOPPED, f"process {self._process.pid} was stopped by a signal")
            return LostJob("hang", f"not decoded within {self._seconds:.0f} seconds")
        return None

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _cause(code: int | None) -> str:
    reason = exit_reason(code)
    return f"{reason} (out of memory?)" if reason == "SIGKILL" else reason


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    _limit_memory()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the process that started this one is gone
            return
        try:
            answer = (True, function(job))
        except Exception as error:  # `outcome` raises it again in the process that sent the job
            answer = (False, error)
        connection.send(answer)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard))
