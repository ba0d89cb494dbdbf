"""Which samples come next: endless permutations, split over ranks, that resume exactly; and the loader around them."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from walt_pl.data.batch import DataError, Draw, JointBatch, Kind, Source, collate
from walt_pl.data.workers import Answer, Workers

_BATCHES_THAT_MAY_FAIL = 3
_KINDS: tuple[Kind, Kind] = ("video", "image")
_NOTHING: NDArray[np.int64] = np.empty(0, np.int64)


class EndlessPermutation:
    """The numbers 0..count-1, each once per pass, every pass in a new order given by (seed, pass).

    Numbers can be left out without disturbing the order of the others. Only the order of the pass last asked for is kept, as
    an array.

    Args:
        count: How many items there are.
        seed: A number, or several, at least 0.
        left_out: Numbers that do not come, ascending.
    """

    def __init__(self, count: int, *seed: int, left_out: NDArray[np.int64] = _NOTHING) -> None:
        self.count = count
        self.used = count - len(left_out)
        self.seed = seed
        self._left_out = left_out
        self._pass = -1
        self._order = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> tuple[int, int]:
        """Gives the item at a position of the endless sequence and the pass it belongs to."""
        pass_number, place = divmod(position, self.used)
        if pass_number != self._pass:
            self._order = self._whole(pass_number)
            if len(self._left_out):
                self._order = self._order[self._comes(self._order)]
            self._pass = pass_number
        return int(self._order[place]), pass_number

    def mark(self, position: int) -> tuple[int, int]:
        """Gives the pass of a position, and how much of the order of all numbers, those left out too, lies behind it."""
        pass_number, place = divmod(position, self.used)
        if place and len(self._left_out):
            place = int(np.flatnonzero(self._comes(self._whole(pass_number)))[place - 1]) + 1
        return pass_number, place

    def position(self, pass_number: int, place: int) -> int:
        """Gives the position of a mark, also of one that was made while other numbers were left out."""
        if place and len(self._left_out):
            place = int(self._comes(self._whole(pass_number)[:place]).sum())
        return pass_number * self.used + place

    def _whole(self, pass_number: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self.seed, pass_number]).permutation(self.count)

    def _comes(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        comes = np.ones(self.count, np.bool_)
        comes[self._left_out] = False
        return comes[numbers]


class BucketOrder:
    """Which bucket every step is of: as often as its share of the samples says, in an order given by (seed, step).

    Within a round of `steps` steps a bucket of share p comes p * steps times, rounded up or down by chance.

    Args:
        shares: Of each bucket, at least 0 and not all 0; of any unit.
        steps: Steps of a round.
        seed: At least 0.
    """

    def __init__(self, shares: Sequence[int], steps: int, seed: int) -> None:
        self._ends = np.cumsum(shares) / sum(shares)
        self._only = next(number for number, share in enumerate(shares) if share) if np.count_nonzero(shares) == 1 else None
        self._steps, self._seed = steps, seed
        # The loader looks ahead of where the training stands.
        self._round = lru_cache(maxsize=2)(self._draw_round)

    def __getitem__(self, step: int) -> int:
        """The bucket of a step."""
        if self._only is not None:
            return self._only
        number, place = divmod(step, self._steps)
        return int(self._round(number)[place])

    def _draw_round(self, number: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, 2, number])
        # Systematic sampling: evenly spaced points, moved together, in a random order.
        points = (rng.permutation(self._steps) + rng.random()) / self._steps
        return np.searchsorted(self._ends, points, side="right")


@dataclass(frozen=True)
class Items:
    """The clips (or images) of one bucket."""

    positions: NDArray[np.int64] | range
    """Where they stand in the list of their kind, ascending."""
    left_out: NDArray[np.int64] = field(default_factory=_NOTHING.copy)
    """Which of these do not come because they are quarantined: numbers into `positions`, ascending."""

    @property
    def used(self) -> int:
        """How many come."""
        return len(self.positions) - len(self.left_out)

    def quarantined(self) -> list[int]:
        """Where those that do not come stand in the list of their kind."""
        return [int(self.positions[number]) for number in self.left_out]


def _items(given: int | Sequence[Items]) -> Sequence[Items]:
    return [Items(range(given))] if isinstance(given, int) else given


class Sampler(Protocol):
    """What the loader needs of a sampler: this rank's draws, step by step, and where it stands."""

    endless: bool
    """Whether `steps` has no end, and the next epoch goes on where the last one stopped."""

    def __len__(self) -> int:
        """Steps of an epoch."""
        ...

    def steps(self) -> Iterator[list[Draw]]:
        """Gives this rank's draws of every step from where the sampler stands."""
        ...

    def advance(self) -> None:
        """Notes that a step's batch was handed to the training loop."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where a state was saved."""
        ...


class JointSampler:
    """Gives each step's videos and images, this rank's share of them.

    Every step is of one bucket. In each bucket videos and images go round in passes of their own, at the ratio of their numbers
    per batch: within a pass nothing comes twice and nothing is left out, also where the counts do not divide (a batch then
    spans two passes). Buckets come as often as their videos (their images, where there are no videos) are many. One that
    lacks a kind of the batch never comes.
    An epoch is one pass over the videos of all buckets, rounded up; over the images where there are no videos.

    The state counts the samples of all ranks, and it counts the quarantined ones that were passed over, too. So the order goes on
    exactly on any number of ranks, and also under another quarantine: what is newly quarantined is passed over, what is
    free again comes where its place still lies ahead, and all others come as they would have. (Only where a quarantine takes the
    last sample of a kind from a bucket, the buckets come in another order from then on.)

    Args:
        videos: Number of clips, or those of each bucket.
        images: Number of images, or those of each bucket.
        videos_per_batch: Clips of the global batch.
        images_per_batch: Images of the global batch.
        rank: Which of the ranks this is.
        ranks: Ranks that share the global batch; they take contiguous parts of it.
        seed: Seeds the order, at least 0.

    Raises:
        ValueError: If the ranks do not divide a number per batch, or a kind is asked for that does not exist.
    """

    endless = True

    def __init__(
        self,
        videos: int | Sequence[Items],
        images: int | Sequence[Items],
        videos_per_batch: int,
        images_per_batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
    ) -> None:
        self._items: dict[Kind, Sequence[Items]] = {"video": _items(videos), "image": _items(images)}
        self._per_batch: dict[Kind, int] = {"video": videos_per_batch, "image": images_per_batch}
        if not videos_per_batch + images_per_batch:
            raise ValueError("a batch needs videos or images: both numbers per batch are 0")
        for kind, per_batch in self._per_batch.items():
            if per_batch % ranks:
                raise ValueError(f"{per_batch} {kind}s per global batch do not divide by {ranks} ranks")
            if per_batch and not sum(items.used for items in self._items[kind]):
                raise ValueError(f"the batch wants {per_batch} {kind}s, but the data has none")
        self._order: dict[Kind, list[EndlessPermutation]] = {
            kind: [
                EndlessPermutation(
                    len(items.positions), seed, number, *([bucket] if len(self._items[kind]) > 1 else []), left_out=items.left_out
                )
                for bucket, items in enumerate(self._items[kind])
            ]
            for number, kind in enumerate(_KINDS)
        }
        wanted = [kind for kind, per_batch in self._per_batch.items() if per_batch]
        self._leading = wanted[0]
        leading = self._items[self._leading]
        whole = [all(self._items[kind][bucket].used for kind in wanted) for bucket in range(len(leading))]
        if not any(whole):
            raise ValueError("no bucket has both videos and images")
        # Not the used ones: the buckets come in the same order whatever the quarantine.
        shares = [len(items.positions) if there else 0 for items, there in zip(leading, whole, strict=True)]
        self._steps = -(-sum(items.used for items, there in zip(leading, whole, strict=True) if there) // self._per_batch[self._leading])
        self._bucket = BucketOrder(shares, -(-sum(shares) // self._per_batch[self._leading]), seed)
        self._consumed: dict[Kind, list[int]] = {kind: [0] * len(items) for kind, items in self._items.items()}
        self._step = 0
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._steps

    def __iter__(self) -> Iterator[list[Draw]]:
        """Gives an epoch's draws from where the sampler stands."""
        return islice(self.steps(), len(self))

    def steps(self) -> Iterator[list[Draw]]:
        """Gives the draws of every step from where the sampler stands, without end; workers may run ahead of `advance`."""
        consumed = {kind: list(counts) for kind, counts in self._consumed.items()}
        step = self._step
        while True:
            bucket = self._bucket[step]
            yield [
                *self._share("video", bucket, consumed["video"][bucket], first_slot=0),
                *self._share("image", bucket, consumed["image"][bucket], first_slot=self._per_batch["video"]),
            ]
            self._count(consumed, bucket)
            step += 1

    def _share(self, kind: Kind, bucket: int, position: int, first_slot: int) -> Iterator[Draw]:
        share = self._per_batch[kind] // self._ranks
        for place in range(self._rank * share, (self._rank + 1) * share):
            number, pass_number = self._order[kind][bucket].index(position + place)
            yield Draw(kind, int(self._items[kind][bucket].positions[number]), pass_number, first_slot + place, bucket)

    def _count(self, consumed: dict[Kind, list[int]], bucket: int) -> None:
        for kind, per_batch in self._per_batch.items():
            consumed[kind][bucket] += per_batch

    def advance(self) -> None:
        """Notes that one global batch was handed to the training loop."""
        self._count(self._consumed, self._bucket[self._step])
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps made, and for each kind and bucket the pass and the place in it, so that any number of ranks can go on from here."""
        return {
            "step": self._step,
            **{f"{kind}s": self._marks(kind) for kind in _KINDS},
            "items": self._fingerprint,
            "quarantined": {kind: [place for items in self._items[kind] for place in items.quarantined()] for kind in _KINDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on after the samples that were consumed, and warns where it cannot do so exactly.

        Raises:
            ValueError: If the state is of another number of buckets.
        """
        if "step" not in state:  # written before there were buckets: plain counts of samples
            state = {"step": state[f"{self._leading}s"] // self._per_batch[self._leading]} | {
                f"{kind}s": [divmod(state[f"{kind}s"], max(1, len(self._items[kind][0].positions)))] for kind in _KINDS
            }
        for kind in _KINDS:
            marks = state[f"{kind}s"]
            if len(marks) != len(self._items[kind]):
                raise ValueError(
                    f"data.buckets has {len(self._items[kind])} sizes, but the checkpoint was written with {len(marks)}: set them back, "
                    "or start over with --fresh true"
                )
        self._step = state["step"]
        same = state.get("items", self._fingerprint) == self._fingerprint
        if not same:
            warnings.warn(
                "the clips and images that fit have changed since the checkpoint was written (another index, other sizes or frames): the "
                "interrupted passes are not finished, new ones begin",
                stacklevel=2,
            )
        for kind in _KINDS:
            for bucket, (pass_number, place) in enumerate(state[f"{kind}s"]):
                order = self._order[kind][bucket]
                mark = (pass_number, place) if same else (pass_number + (place > 0), 0)
                self._consumed[kind][bucket] = order.position(*mark) if order.used else 0
            if same:
                self._tell_quarantine(kind, set(state.get("quarantined", {}).get(kind, [])))

    def _tell_quarantine(self, kind: Kind, before: set[int]) -> None:
        now = {place for items in self._items[kind] for place in items.quarantined()}
        if now != before:
            warnings.warn(
                f"the quarantine has changed since the checkpoint was written ({kind}s: {len(now - before)} more, {len(before - now)} free "
                "again): all others come in the same order as before, beginning where the checkpoint stands",
                stacklevel=3,
            )

    def _marks(self, kind: Kind) -> list[tuple[int, int]]:
        orders = zip(self._order[kind], self._consumed[kind], strict=True)
        return [order.mark(position) if order.used else (0, 0) for order, position in orders]

    @cached_property
    def _fingerprint(self) -> str:
        """Stands for what the order is made of, quarantined items included."""
        digest = hashlib.sha256()
        for kind in _KINDS:
            for items in self._items[kind]:
                digest.update(f"{kind} {len(items.positions)}".encode())
                if not isinstance(items.positions, range):
                    digest.update(np.ascontiguousarray(items.positions).data)
        return digest.hexdigest()


class SequentialSampler:
    """Gives the first clips and images once, in order, for validation; every epoch is the same.

    Bucket by bucket, each step has videos and images in the numbers of the training batch until one kind runs out; the last
    batch of a bucket may be smaller. The counts must divide by the ranks, so that all ranks make the same number of steps.

    Args:
        videos: Number of clips, or those of each bucket.
        images: Number of images, or those of each bucket.
        videos_per_batch: Clips of the global batch.
        images_per_batch: Images of the global batch.
        rank: Which of the ranks this is.
        ranks: Ranks that share the global batch.
    """

    endless = False

    def __init__(
        self,
        videos: int | Sequence[Items],
        images: int | Sequence[Items],
        videos_per_batch: int,
        images_per_batch: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._items: dict[Kind, Sequence[Items]] = {"video": _items(videos), "image": _items(images)}
        self._per_batch: dict[Kind, int] = {"video": videos_per_batch, "image": images_per_batch}
        counts = [items.used for of_kind in self._items.values() for items in of_kind]
        assert all(number % ranks == 0 for number in (*counts, *self._per_batch.values()))
        assert not any(len(items.left_out) for of_kind in self._items.values() for items in of_kind)
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        """Steps until both kinds of all buckets have run out."""
        return sum(map(self._steps_of, range(len(self._items["video"]))))

    def __iter__(self) -> Iterator[list[Draw]]:
        """Gives this rank's draws, all of pass 0."""
        return self.steps()

    def steps(self) -> Iterator[list[Draw]]:
        """The same."""
        for bucket in range(len(self._items["video"])):
            for step in range(self._steps_of(bucket)):
                videos = self._share("video", bucket, step, first_slot=0)
                yield [*videos, *self._share("image", bucket, step, self._per_batch["video"])]

    def _steps_of(self, bucket: int) -> int:
        return max(-(-self._items[kind][bucket].used // per_batch) for kind, per_batch in self._per_batch.items() if per_batch)

    def _share(self, kind: Kind, bucket: int, step: int, first_slot: int) -> Iterator[Draw]:
        items, start = self._items[kind][bucket], step * self._per_batch[kind]
        share = max(0, min(self._per_batch[kind], items.used - start)) // self._ranks
        for place in range(self._rank * share, (self._rank + 1) * share):
            yield Draw(kind, int(items.positions[start + place]), 0, first_slot + place, bucket)

    def advance(self) -> None:
        """Does nothing: validation always starts at the first sample."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


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
        source: Reads a sample by its `Draw`.
        sampler: Gives this rank's draws.
        workers: Worker processes; 0 reads in this process, which a crash of a decoder then ends.
        patience: Seconds that a worker may spend on one file.
    """

    def __init__(self, source: Source, sampler: Sampler, workers: int = 0, patience: float = 60.0) -> None:
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

    def _read(self, draws: Sequence[Draw]) -> Answer:
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
