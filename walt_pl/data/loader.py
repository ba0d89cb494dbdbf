"""Hand joint batches to the training loop, and resume exactly."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from walt_pl.data.batch import DataError, JointBatch, SampleRef, SampleSource, collate
from walt_pl.data.sampler import Sampler
from walt_pl.data.workers import Answer, Workers

_BATCHES_THAT_MAY_FAIL = 3


class BatchLoader(ABC):
    """What hands batches to the training loop: an epoch's number of them, again and again, with a state in between.

    Lightning saves and restores it by itself, because it has `state_dict`, `load_state_dict` and a length. (Without a
    length Lightning fetches a batch ahead, and one batch is lost on resuming.)

    A file that cannot be read keeps its slot with weight 0 and is warned about once, with its reason.
    """

    endless: bool
    """Whether an iteration goes on where the last one stopped."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self._handed_out = 0
        self._usable = 0
        self._stream: Generator[Answer, None, None] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def _answers(self) -> Generator[Answer, None, None]:
        """Gives batches from where the state stands. Each one that is taken counts as handed out."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""

    def __iter__(self) -> Iterator[JointBatch]:
        """Gives an epoch's batches.

        A generator on purpose: Lightning calls `iter` before it restores, and workers must not start before that.

        Raises:
            RuntimeError: If not one sample of the first batches can be read.
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
            # A rank's share of a validation may be one clip, which is no reason to stop.
            if self.endless and not self._usable and self._handed_out >= min(_BATCHES_THAT_MAY_FAIL, len(self)):
                raise DataError(self._nothing_readable())
            yield batch.pin_memory() if torch.cuda.is_available() else batch

    def restart(self) -> None:
        """Forgets what has been read ahead."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def close(self) -> None:
        """Ends the workers; iterating again starts new ones."""
        self.restart()

    def _note(self, path: str, reason: str) -> None:
        if path in self.failures:
            return
        self.failures[path] = reason
        warnings.warn(
            f"{reason} (unreadable files so far: {len(self.failures)}; each keeps its slot with weight 0)",
            stacklevel=2,
        )

    def _nothing_readable(self) -> str:
        reasons = list(self.failures.values())
        more = [f"... and {len(reasons) - 10} more"] if len(reasons) > 10 else []
        head = f"none of the samples of the first {self._handed_out} batches can be read:"
        return "\n  ".join([head, *reasons[:10], *more])


class JointLoader(BatchLoader):
    """Loads joint batches in the order of a sampler and resumes exactly, in the middle of an epoch too.

    What counts as consumed is a batch that was handed out, not one that a worker has read ahead. An iteration gives
    `len(loader)` batches from where the sampler stands; what workers have read ahead at its end is kept for the next one.

    With workers, a file that kills its reader or takes longer than `patience`, each twice, counts as one that cannot be read.

    Args:
        source: Reads a sample by its `SampleRef`.
        sampler: Gives this rank's draws.
        workers: Worker processes; 0 reads in this process, which a crash of a decoder then ends.
        patience: Seconds that a worker may spend on one file.
    """

    def __init__(self, source: SampleSource, sampler: Sampler, workers: int = 0, patience: float = 60.0) -> None:
        super().__init__()
        # Not `sampler`: Lightning takes whatever has that attribute for a torch DataLoader and looks for the rest.
        self._sampler = sampler
        self._source = source
        self._workers = Workers(source, workers, patience) if workers else None
        self.endless = sampler.endless

    def __len__(self) -> int:
        return len(self._sampler)

    def _answers(self) -> Generator[Answer, None, None]:
        steps = self._sampler.steps()
        for answer in map(self._read, steps) if self._workers is None else self._workers.read(steps):
            self._sampler.advance()
            yield answer

    def _read(self, draws: Sequence[SampleRef]) -> Answer:
        return collate([self._source[draw] for draw in draws])

    def close(self) -> None:
        super().close()
        if self._workers is not None:
            self._workers.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, see the sampler."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; the number of ranks and workers may differ."""
        self._sampler.load_state_dict(state)
        self.restart()
