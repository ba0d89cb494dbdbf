"""Hand joint batches to the training loop, and resume exactly."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from walt_pl.data.batch import DataError, JointBatch, SampleRef, SampleSource, collate
from walt_pl.data.heartbeat import watch_wait
from walt_pl.data.sampler import Sampler
from walt_pl.data.workers import Answer, Workers

_BATCHES_THAT_MAY_FAIL = 3


class BatchLoader(ABC):
    """Hand out one epoch of batches per iteration, with a state between batches.

    Lightning saves and restores the loader by itself, because it has `state_dict`, `load_state_dict` and a length. Without a
    length Lightning fetches a batch ahead, and one batch is lost on resuming.

    A sample whose file cannot be read keeps its place in the batch, with weight 0. The loader warns once for each file, with the reason.
    """

    endless: bool
    """True if an iteration continues where the last one stopped."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self._handed_out = 0
        self._usable = 0
        self._stream: Generator[Answer, None, None] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    @abstractmethod
    def _answers(self) -> Generator[Answer, None, None]:
        """Yield batches from the position that the state holds. Each batch that is consumed counts as handed out."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position of the loader."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""

    def __iter__(self) -> Iterator[JointBatch]:
        """Yield the batches of an epoch.

        This is a generator on purpose: Lightning calls `iter` before it restores, and workers must not start before that.

        Raises:
            DataError: None of the samples of the first batches can be read.
        """
        if not self.endless:
            self.restart()
        if self._stream is None:
            self._stream = self._answers()
        for batch, failures in islice(self._stream, len(self)):
            self._handed_out += 1
            self._usable += len(batch.paths) - len(failures)
            for failure in failures:
                self._note(failure.path, failure.reason)
            # A rank's share of a validation may be one clip. One unreadable clip is no reason to stop.
            if self.endless and not self._usable and self._handed_out >= min(_BATCHES_THAT_MAY_FAIL, len(self)):
                raise DataError(self._nothing_readable())
            yield batch.pin_memory() if torch.cuda.is_available() else batch

    def restart(self) -> None:
        """Drop the batches that have been read ahead."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def close(self) -> None:
        """End the workers. Iterating again starts new ones."""
        self.restart()

    def _note(self, path: str, reason: str) -> None:
        if path in self.failures:
            return
        self.failures[path] = reason
        warnings.warn(
            f"{reason} (clips and images of weight 0 so far: {len(self.failures)}; each keeps its place in the batch)",
            stacklevel=2,
        )

    def _nothing_readable(self) -> str:
        reasons = list(self.failures.values())
        more = [f"... and {len(reasons) - 10} more"] if len(reasons) > 10 else []
        head = f"none of the samples of the first {self._handed_out} batches can be read:"
        return "\n  ".join([head, *reasons[:10], *more])


class JointLoader(BatchLoader):
    """Load joint batches in the order of a sampler, and resume exactly, in the middle of an epoch too.

    A batch counts as consumed when it is handed out, not when a worker has read it ahead. An iteration yields `len(loader)` batches
    from the sampler's position. Batches that workers have read ahead at its end are kept for the next iteration.

    With workers, a file fails like one that cannot be read if it twice kills its reader or takes longer than `timeout`.

    Args:
        source: Reads a sample by its `SampleRef`.
        sampler: Yields the `SampleRef`s of this rank.
        num_workers: Worker processes. With 0, this process reads, and a decoder that crashes ends it.
        timeout: Seconds that a worker may spend on one file.
        patience: Seconds without a sign of life after which a worker that reads no file is replaced.
    """

    def __init__(self, source: SampleSource, sampler: Sampler, num_workers: int = 0, timeout: float = 60.0, patience: float = 60.0) -> None:
        super().__init__()
        # Not `sampler`: Lightning treats an object with that attribute as a torch DataLoader and looks for the rest.
        self._sampler = sampler
        self._source = source
        self._workers = Workers(source, num_workers, timeout, patience) if num_workers else None
        self.endless = sampler.endless

    def __len__(self) -> int:
        return len(self._sampler)

    def _answers(self) -> Generator[Answer, None, None]:
        steps = self._sampler.steps()
        for answer in map(self._read, steps) if self._workers is None else self._workers.read(steps):
            self._sampler.advance()
            yield answer

    def _read(self, draws: Sequence[SampleRef]) -> Answer:
        reading = draws[:1]  # the one that is read now

        def name() -> str:
            return f"this process reads {self._source.replace_failed(reading[0], '').path} (data.num_workers is 0)"

        samples = []
        with watch_wait(name):
            for draw in draws:
                reading = [draw]
                samples.append(self._source[draw])
        return collate(samples)

    def close(self) -> None:
        super().close()
        if self._workers is not None:
            self._workers.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the sampler, see `Sampler.state_dict`."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. The number of ranks and workers may differ."""
        self._sampler.load_state_dict(state)
        self.restart()
