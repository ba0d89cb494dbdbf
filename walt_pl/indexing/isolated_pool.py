"""Run jobs in processes of their own. A decoder that hangs or crashes affects only its own file.

A job hangs if it gives no sign of progress for too long. Time is processor time of its process: neither a busy machine nor a stopped
process is the fault of a file.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from walt_pl.processes import exit_reason, prepare_worker_signals, process_use

Job = TypeVar("Job")
Result = TypeVar("Result")

# No real file needs so much. A damaged header may ask for more memory than the machine has.
_MEMORY = 8 << 30
START = 300.0
"""Seconds until a process answers for the first time, after its imports; then another one is started."""
_STARTS = 3
_STOPPED = "stopped"
_ASLEEP = 10.0
"""Times the limit that a process may sleep without a sign, as on a disk that does not answer."""
_LOOK = 1.0
"""Seconds between two looks at the processes, at most."""
_signs: Any = None
"""Count of the signs of this process, which the process that started it reads."""


def give_sign() -> None:
    """Tell the pool that the job of this process got on: a frame was found, or bytes were read. Elsewhere do nothing."""
    if _signs is not None:
        _signs.value += 1


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
    seconds: float,
    retry: Callable[[Job], Job | None] = lambda job: None,
    total: Callable[[Job], float] = lambda job: math.inf,
) -> Iterator[tuple[Job, Result | LostJob]]:
    """Yield each job with its result, in the order in which they finish, from `workers` processes.

    A job that gives no sign (`give_sign`) for `seconds` is killed. The standard error of the processes is dropped: decoders complain about
    every bad byte.

    Args:
        function: Function of a module, so that another process can import it.
        jobs: Jobs. They are consumed as workers become free.
        workers: Number of processes, at least 1.
        seconds: Processor time of a job between two signs. A job that sleeps may take ten times as long by the clock.
        retry: Returns the job that replaces a lost job; None: the job stays lost.
        total: Returns the limit of the processor time of a whole job: for a decoder that finds frames without end.

    Raises:
        Exception: An exception that `function` raises.
    """
    first, again = iter(jobs), deque[Job]()
    pool: list[_Worker[Job, Result]] = [_Worker(function) for _ in range(workers)]
    try:
        while True:
            for worker in pool:
                if worker.free and (job := again.popleft() if again else next(first, None)) is not None:
                    worker.give(job, seconds, total(job))
            busy = [worker for worker in pool if not worker.free]
            if not busy:
                return
            wait([worker.connection for worker in busy], _look_interval(seconds))
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
        self._start()

    def _start(self) -> None:
        # spawn, because native decoders do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._signs = context.RawValue(ctypes.c_int64, 0)
        self._process = context.Process(target=_serve, args=(theirs, self._function, self._signs), daemon=True)
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

    def give(self, job: Job, seconds: float, total: float) -> None:
        if not self._started:
            self._await_start()
            self._started = True
        self._job = job
        with suppress(BrokenPipeError):  # it died after its last answer; `outcome` notices that
            self.connection.send(job)
        self._clock = _Clock(self._process.pid, seconds, total)

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
        return self._clock.look(self._signs.value)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _look_interval(seconds: float) -> float:
    return min(_LOOK, seconds / 4)


class _Clock:
    """The times of one job of a process, as the process that waits for it measures them."""

    def __init__(self, pid: int | None, seconds: float, total: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._total = total
        self._signs = -1
        self._looked = time.monotonic()
        self._waited = 0.0
        self._begun = self._use()[1]
        self._since = self._begun
        self._asleep = 0.0
        self._stopped = 0.0

    def _use(self) -> tuple[str, float]:
        """Return the state of the process and its processor time; where there is no /proc, the time that was waited."""
        state, used = process_use(self._pid)
        return state, self._waited if used is None else used

    def look(self, signs: int) -> LostJob | None:
        """Return the outcome of a job that hangs, or None.

        Args:
            signs: Count of the signs of its process.
        """
        now = time.monotonic()
        # Of a long pause of this process itself (Ctrl-Z, or the caller at work) no more counts than between two looks.
        passed, self._looked = min(now - self._looked, 2 * _look_interval(self._seconds)), now
        self._waited += passed
        state, used = self._use()
        if signs != self._signs:
            self._signs, self._since, self._asleep, self._stopped = signs, used, 0.0, 0.0
        self._asleep += passed if state in ("S", "D") else 0.0
        self._stopped += passed if state in ("T", "t") else 0.0
        if self._stopped > self._seconds:
            return LostJob(_STOPPED, f"process {self._pid} was stopped by a signal")
        if used - self._since > self._seconds:
            return LostJob("hang", f"nothing new for {self._seconds:g} s of processor time")
        if self._asleep > _ASLEEP * self._seconds:
            return LostJob("hang", f"nothing new for {_ASLEEP * self._seconds:g} s, in which its process slept: does its disk answer?")
        if used - self._begun > self._total:
            return LostJob("hang", f"not decoded within {self._total:g} s of processor time")
        return None


def _cause(code: int | None) -> str:
    reason = exit_reason(code)
    return f"{reason} (out of memory?)" if reason == "SIGKILL" else reason


def _serve(connection: Connection, function: Callable[[Any], Any], signs: Any) -> None:
    global _signs
    _signs = signs
    prepare_worker_signals()
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
