"""Which samples come next: endless permutations, split over ranks, that resume exactly; and the loader around them."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from walt_pl.data.batch import DataError, Draw, JointBatch, Kind, Sample, collate

_BATCHES_THAT_MAY_FAIL = 3


class EndlessPermutation:
    """The numbers 0..count-1, each once per pass, every pass in a new order given by (seed, pass).

    Only the order of the pass last asked for is kept, as an array.

    Args:
        count: How many items there are.
        seed: A number, or several, at least 0.
    """

    def __init__(self, count: int, *seed: int) -> None:
        self.count = count
        self.seed = seed
        self._pass = -1
        self._order = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> tuple[int, int]:
        """Gives the item at a position of the endless sequence and the pass it belongs to."""
        pass_number, place = divmod(position, self.count)
        if pass_number != self._pass:
            self._order = np.random.default_rng([*self.seed, pass_number]).permutation(self.count)
            self._pass = pass_number
        return int(self._order[place]), pass_number


class Sampler(Protocol):
    """What the loader needs of a sampler: this rank's draws, step by step, and where it stands."""

    def __len__(self) -> int:
        """Steps of an epoch."""

    def __iter__(self) -> Iterator[list[Draw]]:
        """Gives an epoch's draws from where the sampler stands."""

    def advance(self) -> None:
        """Notes that a step's batch was handed to the training loop."""

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands."""

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes back to where a state was saved."""


class JointSampler:
    """Gives each step's videos and images, this rank's share of them.

    Videos and images each go round in passes of their own, at the ratio of their numbers per batch: within a pass
    nothing comes twice and nothing is left out, also where the counts do not divide (a batch then spans two passes).
    An epoch is one pass over the videos, rounded up; over the images where there are no videos.

    Args:
        videos: Number of clips.
        images: Number of images.
        videos_per_batch: Clips of the global batch.
        images_per_batch: Images of the global batch.
        rank: Which of the ranks this is.
        ranks: Ranks that share the global batch; they take contiguous parts of it.
        seed: Seeds the order, at least 0.

    Raises:
        ValueError: If the ranks do not divide a number per batch, or a kind is asked for that does not exist.
    """

    def __init__(
        self,
        videos: int,
        images: int,
        videos_per_batch: int,
        images_per_batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
    ) -> None:
        self._count: dict[Kind, int] = {"video": videos, "image": images}
        self._per_batch: dict[Kind, int] = {"video": videos_per_batch, "image": images_per_batch}
        if not videos_per_batch + images_per_batch:
            raise ValueError("a batch needs videos or images: both numbers per batch are 0")
        for kind, per_batch in self._per_batch.items():
            if per_batch % ranks:
                raise ValueError(f"{per_batch} {kind}s per global batch do not divide by {ranks} ranks")
            if per_batch and not self._count[kind]:
                raise ValueError(f"the batch wants {per_batch} {kind}s, but the data has none")
        self._order: dict[Kind, EndlessPermutation] = {
            "video": EndlessPermutation(videos, seed, 0),
            "image": EndlessPermutation(images, seed, 1),
        }
        self._consumed: dict[Kind, int] = {"video": 0, "image": 0}
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        """Steps of an epoch."""
        kind: Kind = "video" if self._per_batch["video"] else "image"
        return -(-self._count[kind] // self._per_batch[kind])

    def __iter__(self) -> Iterator[list[Draw]]:
        """Gives an epoch's draws from where the sampler stands; workers may run ahead of `advance`."""
        consumed = dict(self._consumed)
        for step in range(len(self)):
            yield [
                *self._share("video", consumed["video"] + step * self._per_batch["video"], first_slot=0),
                *self._share(
                    "image",
                    consumed["image"] + step * self._per_batch["image"],
                    first_slot=self._per_batch["video"],
                ),
            ]

    def _share(self, kind: Kind, position: int, first_slot: int) -> Iterator[Draw]:
        share = self._per_batch[kind] // self._ranks
        for place in range(self._rank * share, (self._rank + 1) * share):
            item, pass_number = self._order[kind].index(position + place)
            yield Draw(kind, item, pass_number, first_slot + place)

    def advance(self) -> None:
        """Notes that one global batch was handed to the training loop."""
        for kind, per_batch in self._per_batch.items():
            self._consumed[kind] += per_batch

    def state_dict(self) -> dict[str, int]:
        """Samples consumed by all ranks together, so that any number of ranks can go on from here."""
        return {"videos": self._consumed["video"], "images": self._consumed["image"]}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on after the samples that were consumed."""
        self._consumed = {"video": state["videos"], "image": state["images"]}


class SequentialSampler:
    """Gives the first clips and images once, in order, for validation; every epoch is the same.

    Each step has videos and images in the numbers of the training batch until one kind runs out; the last batch may
    be smaller. The counts must divide by the ranks, so that all ranks make the same number of steps.

    Args:
        videos: Number of clips.
        images: Number of images.
        videos_per_batch: Clips of the global batch.
        images_per_batch: Images of the global batch.
        rank: Which of the ranks this is.
        ranks: Ranks that share the global batch.
    """

    def __init__(self, videos: int, images: int, videos_per_batch: int, images_per_batch: int, rank: int = 0, ranks: int = 1) -> None:
        assert all(number % ranks == 0 for number in (videos, images, videos_per_batch, images_per_batch))
        self._count: dict[Kind, int] = {"video": videos, "image": images}
        self._per_batch: dict[Kind, int] = {"video": videos_per_batch, "image": images_per_batch}
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        """Steps until both kinds have run out."""
        return max(-(-self._count[kind] // per_batch) for kind, per_batch in self._per_batch.items() if per_batch)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Gives this rank's draws, all of pass 0."""
        for step in range(len(self)):
            yield [*self._share("video", step, first_slot=0), *self._share("image", step, self._per_batch["video"])]

    def _share(self, kind: Kind, step: int, first_slot: int) -> Iterator[Draw]:
        start = step * self._per_batch[kind]
        share = max(0, min(self._per_batch[kind], self._count[kind] - start)) // self._ranks
        for place in range(self._rank * share, (self._rank + 1) * share):
            yield Draw(kind, start + place, 0, first_slot + place)

    def advance(self) -> None:
        """Does nothing: validation always starts at the first sample."""

    def state_dict(self) -> dict[str, int]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing to restore."""


class JointLoader:
    """Loads joint batches in the order of a sampler and resumes exactly, in the middle of an epoch too.

    Lightning saves and restores it by itself, because it has `state_dict`, `load_state_dict` and a length. (Without a
    length Lightning fetches a batch ahead, and one batch is lost on resuming.)

    What counts as consumed is a batch that was handed out, not one that a worker has read ahead. An iteration gives
    `len(loader)` batches from where the sampler stands.

    A file that cannot be read keeps its slot with weight 0 and is warned about once, with its reason.

    Args:
        dataset: Reads a sample by its `Draw`.
        sampler: Gives this rank's draws.
        workers: Worker processes; 0 reads in this process.
    """

    def __init__(self, dataset: Dataset[Sample], sampler: Sampler, workers: int = 0) -> None:
        # Not `sampler`: Lightning takes whatever has that attribute for a torch DataLoader and looks for the rest.
        self._sampler = sampler
        self.failures: dict[str, str] = {}
        self._handed_out = 0
        self._usable = 0
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Native decoders and thread pools do not survive a fork.
            multiprocessing_context=_forkserver() if workers else None,
            worker_init_fn=_end_with_training,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: the DataLoader draws a base seed at every start, which would move the global
            # random state once more after a resume than without.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[JointBatch]:
        """Gives an epoch's batches.

        A generator on purpose: Lightning calls `iter` before it restores, and workers must not start before that.

        Raises:
            RuntimeError: If not one sample of the first batches can be read.
        """
        for batch, failures in self._loader:
            self._sampler.advance()
            self._handed_out += 1
            self._usable += len(batch.paths) - len(failures)
            for failure in failures:
                self._note(failure.path, failure.reason)
            if not self._usable and self._handed_out >= min(_BATCHES_THAT_MAY_FAIL, len(self)):
                raise DataError(self._nothing_readable())
            yield batch

    def close(self) -> None:
        """Ends the workers; iterating again starts new ones.

        Left to the garbage collector, every worker that has read ahead costs five seconds: its queue is gone before it
        is told to stop.
        """
        iterator = self._loader._iterator
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
        self._loader._iterator = None

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

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: samples consumed by all ranks together."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a saved state; the number of ranks and workers may differ."""
        self._sampler.load_state_dict(state)


def _forkserver() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    # The server imports torch once; every worker after that starts in milliseconds.
    context.set_forkserver_preload(["torch", "walt_pl.data.batch"])
    return context


def _end_with_training(worker: int) -> None:
    """Ends a worker when the training process is gone: torch looks at the server that forked it, and that one waits for its workers."""
    training = multiprocessing.parent_process()
    assert training is not None

    def watch() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
