"""Processes that read batches ahead, and survive crashes and hangs of native decoders.

torch's DataLoader ends with an error when a worker dies. It does not name the file, and it does not end a worker that hangs. Here
every worker has a pipe of its own. It notes in shared memory the file that it reads and the start time, and counts up its signs of
life. A worker that dies, takes too long or gives no sign is replaced, and its batches are read again. The training loop and the other
workers are not affected. Batches travel as in torch's DataLoader: their tensors lie in shared memory.
"""

import contextlib
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ensure_running
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing  # registers the pickling of tensors for pipes

from walt_pl.data.batch import DataError, JointBatch, Kind, ReadFailure, SampleRef, SampleSource, collate
from walt_pl.data.heartbeat import BEAT, Silence, give_signs, watch_wait
from walt_pl.processes import exit_reason, is_stopped, prepare_worker_signals

AHEAD = 2
"""Batches that each worker has before it: it reads one, and one waits."""
LIVES = 3
"""Number of workers in one place that die in a row, without a file being read, at which reading ends with an error."""

DYING = 5.0
"""Seconds that a killed process may take to end. One that waits for a lost disk cannot be killed, and is left behind."""

Answer = tuple[JointBatch, list[ReadFailure]]


@dataclass
class _Task:
    number: int
    draws: Sequence[SampleRef]


@dataclass
class _Worker:
    process: Any
    connection: "Connection[Any, Any]"
    reading: Any
    """Shared doubles: number of the batch, place in it (-1: no file is being read), start time on the monotonic clock."""
    beats: Any
    """Shared double: count of its signs of life."""
    tasks: deque[_Task] = field(default_factory=deque)
    silence: Silence = field(default_factory=Silence)
    reason: str = ""
    """Why it was ended while this process waited."""
    killed: float = math.inf
    """Time of that on the monotonic clock."""
    deaths: int = 0
    """Number of workers in its place that died in a row, without a file being read."""


class Workers:
    """Read batches in processes, and yield them in order.

    A new worker tries a file once more if a worker died at it, or if it took longer than `timeout`. After the second time the file is
    not read again. From then on it fails like any file that cannot be read, with zeros in its place.

    Args:
        source: Reads the samples. It is pickled to every worker.
        count: Number of processes, at least 1. They start with the first batch.
        timeout: Seconds that one file may take.
        patience: Seconds without a sign of life after which a worker that reads no file is replaced.
    """

    def __init__(self, source: SampleSource, count: int, timeout: float = 60.0, patience: float = 60.0) -> None:
        self._source = source
        self._count = count
        self._timeout = timeout
        self._patience = patience
        self._workers: list[_Worker] = []
        self._asked = 0
        self._suspects: set[tuple[Kind, int]] = set()
        self._given_up: dict[tuple[Kind, int], str] = {}

    def read(self, steps: Iterable[Sequence[SampleRef]]) -> Iterator[Answer]:
        """Yield the batch of every step, in order, with some read ahead. An earlier reading that was left unfinished is dropped.

        Raises:
            DataError: Reading failed for another reason than a file, or workers died before they read anything.
        """
        while len(self._workers) < self._count:
            self._workers.append(self._start())
        coming, wanted = iter(steps), self._asked
        ready: dict[int, Answer] = {}
        for worker in self._workers:
            worker.tasks = deque(_Task(task.number, ()) for task in worker.tasks)  # their answers still arrive, and are dropped
        more = True
        while True:
            while more and self._asked - wanted < AHEAD * self._count:
                draws = next(coming, None)
                more = draws is not None
                if draws is not None:
                    self._give(min(self._workers, key=lambda worker: len(worker.tasks)), _Task(self._asked, draws))
                    self._asked += 1
            if wanted == self._asked:
                return
            self._await(wanted, ready)
            yield ready.pop(wanted)
            wanted += 1

    def _await(self, wanted: int, ready: dict[int, Answer]) -> None:
        """Receive answers until that of a batch is there."""
        # Receiving may wait for a worker, too: it hands over the memory of the tensors.
        with watch_wait(lambda: self._describe(wanted), self._end_lost, min(BEAT, self._timeout / 2, self._patience / 2)):
            self._take(ready, seconds=0)
            while wanted not in ready:
                self._take(ready, seconds=1.0)

    def _end_lost(self, seconds: float) -> None:
        """End workers that take too long for a file, or that give no sign of life between files. Then their pipes break.

        Args:
            seconds: Seconds since the last call.
        """
        for worker in list(self._workers):
            _, place, since = worker.reading
            silent = worker.silence.hear(worker.beats[0], seconds)
            if not worker.tasks or worker.reason:
                continue
            if place >= 0 and time.monotonic() - since > self._timeout:
                worker.reason = f"still being read after {self._timeout:g} seconds"
            elif place < 0 and silent > worker.silence.limit(self._patience):
                worker.reason = f"process {worker.process.pid} gave no sign of life for {silent:.0f} seconds"
            if worker.reason:
                worker.process.kill()
                worker.killed = time.monotonic()

    def _describe(self, wanted: int) -> str:
        """Return which worker has the batch, and what it does since when."""
        for number, worker in enumerate(list(self._workers)):
            tasks = {task.number: task for task in list(worker.tasks)}
            if wanted in tasks:
                batch, place, since = worker.reading
                does, draws = "it reads no file", tasks[int(batch)].draws if int(batch) in tasks else ()
                if place >= 0 and int(place) < len(draws):
                    path = self._source.replace_failed(draws[int(place)], "").path
                    does = f"it reads {path}, for {time.monotonic() - since:.0f} seconds (data.timeout is {self._timeout:g})"
                state = " and is stopped" if is_stopped(worker.process.pid) else ""
                return f"batch {wanted} of worker {number}, process {worker.process.pid}{state}; {does}"
        return f"batch {wanted}"

    def close(self) -> None:
        """End the processes. Reading again starts new ones."""
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def _start(self) -> _Worker:
        context = forkserver()
        ours, theirs = context.Pipe()
        reading, beats = context.RawArray("d", [0, -1, 0]), context.RawArray("d", [0])
        process = context.Process(target=_serve, args=(self._source, theirs, reading, beats), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, reading, beats)

    def _give(self, worker: _Worker, task: _Task) -> None:
        worker.tasks.append(task)
        given_up = {
            draw.global_batch_index: self._given_up[draw.kind, draw.item] for draw in task.draws if (draw.kind, draw.item) in self._given_up
        }
        with contextlib.suppress(OSError):  # it has died; `_take` notices that when it waits for the answer
            worker.connection.send((task.number, task.draws, given_up))

    def _take(self, ready: dict[int, Answer], seconds: float) -> None:
        """Receive the answers that arrive within some seconds, and replace workers that have ended or cannot be ended."""
        busy: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers if worker.tasks}
        for connection in wait(list(busy), seconds):
            worker = busy[connection]
            try:
                number, answer = worker.connection.recv()
            # Also OSError: the tensors come from a process that may have died since.
            except (EOFError, OSError):
                self._replace(worker, worker.reason)
                continue
            task = worker.tasks.popleft()
            assert task.number == number
            worker.deaths = 0
            if not task.draws:
                continue
            if isinstance(answer, str):
                raise DataError(answer)
            ready[number] = answer
        for worker in list(self._workers):
            if time.monotonic() - worker.killed > DYING:  # it cannot be killed, and its pipe never breaks
                self._replace(worker, worker.reason)

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Start a new worker in place of one that was ended (for a reason) or has died, and hand it the old worker's batches."""
        _end(worker)
        number, place = (int(value) for value in worker.reading[:2])
        reason = reason or f"its worker was killed by {exit_reason(worker.process.exitcode)}"
        task = next((task for task in worker.tasks if task.number == number), None)
        if place >= 0 and task is not None and task.draws:
            self._blame(task.draws[place], reason)
        else:
            # SLURM and systemd end all processes of a job at once, so those in other places say nothing about this one.
            worker.deaths += 1
            if worker.deaths >= LIVES:
                raise DataError(
                    f"{worker.deaths} workers in a row died before they could read a file ({reason}): is there room in memory and in "
                    "/dev/shm, through which batches travel? Fewer data.num_workers need less; 0 reads in the training process"
                )
            warnings.warn(f"a worker ended while it read no file ({reason}); a new one reads its batches", stacklevel=2)
        fresh = self._start()
        fresh.deaths = worker.deaths
        self._workers[self._workers.index(worker)] = fresh
        for task in worker.tasks:
            if task.draws:
                self._give(fresh, task)

    def _blame(self, draw: SampleRef, reason: str) -> None:
        key, path = (draw.kind, draw.item), self._source.replace_failed(draw, "").path
        if key in self._suspects:
            self._given_up[key] = f"{path}: {reason}, for the second time; not read again"
        else:
            self._suspects.add(key)
            warnings.warn(f"{path}: {reason}; a new worker tries it once more", stacklevel=2)


def _end(worker: _Worker) -> None:
    worker.process.kill()  # it holds no lock and no file but its own
    worker.process.join(DYING)
    worker.connection.close()


def forkserver() -> Any:
    """Return the multiprocessing context of processes that decode: native decoders and thread pools do not survive a fork."""
    context = multiprocessing.get_context("forkserver")
    # The server imports torch once. Then every worker starts in milliseconds.
    context.set_forkserver_preload(["walt_pl.data.workers", "walt_pl.data.transforms"])
    # Workers inherit this folder for their sockets, and this process removes it at its end. A worker that makes one of its own leaves it
    # behind, since it is killed.
    multiprocessing.util.get_temp_dir()
    # SLURM sends SIGUSR1 and SIGTERM to every process of a job, and the training reads on to its checkpoint. The server hands this mask on
    # to its workers. They take SIGTERM all the same, by which multiprocessing ends them; the training starts others in their place.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()  # it ignores SIGTERM itself, and its start unblocks SIGTERM here
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def end_with_training(worker: int) -> None:
    """End a DataLoader's worker when the training process is gone.

    torch watches the server that forked the worker, and that server waits for the worker.
    """
    prepare_worker_signals()  # the training reads on to its checkpoint
    training = multiprocessing.parent_process()
    assert training is not None

    def watch() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(source: SampleSource, connection: "Connection[Any, Any]", reading: Any, beats: Any) -> None:
    """Read the batches that arrive, until the pipe is closed: the main loop of a worker."""
    give_signs(beats)
    torch.set_num_threads(1)
    prepare_worker_signals()
    while True:
        try:
            number, draws, given_up = connection.recv()
        except (EOFError, OSError):
            return
        try:
            data = ForkingPickler.dumps((number, _read(source, number, draws, given_up, reading)))
        except Exception:
            # Name the file here: when the answer arrives, this process may be reading the next batch.
            place = int(reading[1])
            name = f"{source.replace_failed(draws[place], '').path}: " if place >= 0 else ""
            data = ForkingPickler.dumps((number, name + traceback.format_exc()))
        try:
            connection.send_bytes(data)
        except OSError:
            return


def _read(source: SampleSource, number: int, draws: Sequence[SampleRef], given_up: Mapping[int, str], reading: Any) -> Answer:
    samples = []
    for place, draw in enumerate(draws):
        reading[0], reading[2] = number, time.monotonic()
        reading[1] = place
        samples.append(
            source.replace_failed(draw, given_up[draw.global_batch_index]) if draw.global_batch_index in given_up else source[draw]
        )
        reading[1] = -1
    return collate(samples)
