"""Watch the workers of a torch DataLoader: one that is stopped is ended, and the loader of a stream begins again at its positions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from walt_pl.data.batch import DataError
from walt_pl.data.heartbeat import Silence, give_signs, watch_wait
from walt_pl.data.workers import LIVES, end_with_training, forkserver
from walt_pl.processes import is_stopped


class WorkerSigns:
    """Signs of life of all workers, in shared memory. It is the `worker_init_fn` of a DataLoader.

    Args:
        count: number of workers.
    """

    def __init__(self, count: int) -> None:
        self.beats = [forkserver().RawArray("d", [0]) for _ in range(count)]

    def __call__(self, worker: int) -> None:
        """Begin to give signs, in a worker."""
        end_with_training(worker)
        give_signs(self.beats[worker])


class LostWorker(Exception):
    """A worker has ended or was ended, because it gave no sign of life."""


def watched(loader: DataLoader[Any], patience: float) -> Generator[Any, None, None]:
    """Yield the batches of a DataLoader, and end a worker that gives no sign of life for `patience` seconds.

    Raises:
        LostWorker: a worker has ended. The message names it.
    """
    batches = iter(loader)
    processes = batches._workers if isinstance(batches, _MultiProcessingDataLoaderIter) else []
    signs = loader.worker_init_fn.beats if isinstance(loader.worker_init_fn, WorkerSigns) else []
    silences = [Silence() for _ in processes]
    ended: list[str] = []

    def end_silent(seconds: float) -> None:
        for process, beats, silence in zip(processes, signs, silences, strict=False):
            silent = silence.hear(beats[0], seconds)
            if silent > silence.limit(patience) and process.is_alive():
                ended.append(f"process {process.pid} gave no sign of life for {silent:.0f} seconds")
                process.kill()

    def describe() -> str:
        states = [f"process {process.pid}{' is stopped' if is_stopped(process.pid) else ''}" for process in processes]
        return f"tar shards, read by {', '.join(states) or f'this process, {os.getpid()}'}"

    try:
        while True:
            try:
                with watch_wait(describe, end_silent):
                    batch = next(batches, None)
            except (RuntimeError, OSError, EOFError) as error:
                for process in processes:
                    process.join(0.2)  # the end of one may be heard here before the system reports it
                if not ended and all(process.is_alive() for process in processes):
                    raise
                raise LostWorker("; ".join(ended) or str(error).splitlines()[0]) from error
            if batch is None:
                return
            yield batch
    finally:
        # The garbage collector would need five seconds for every worker that has read ahead: it removes the worker's queue
        # before it stops the worker.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            for process in processes:
                if is_stopped(process.pid):
                    process.kill()  # it would not hear that it shall end
            batches._shutdown_workers()


def begin_again(lost: LostWorker, deaths: int) -> None:
    """Warn that all workers begin again at the positions of their last batches.

    Raises:
        DataError: workers were lost `LIVES` times without a batch in between.
    """
    if deaths >= LIVES:
        raise DataError(f"data.shards: {deaths} workers in a row were lost before they had read a batch ({lost})")
    warnings.warn(f"a worker of the tar shards was lost ({lost}); new ones begin at the positions of the last batches", stacklevel=3)
