"""Choose the samples of every step: split over ranks, in an order that resumes exactly."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from walt_pl.data.batch import Kind, SampleRef
from walt_pl.data.permutation import NOTHING, BucketOrder, EndlessPermutation

_KINDS: tuple[Kind, Kind] = ("video", "image")


@dataclass(frozen=True)
class BucketItems:
    """The clips (or images) of one bucket."""

    positions: NDArray[np.int64] | range
    """Their positions in the list of their kind, ascending."""
    left_out: NDArray[np.int64] = field(default_factory=NOTHING.copy)
    """Those of them that are skipped because they are quarantined: numbers into `positions`, ascending."""

    @property
    def used(self) -> int:
        """Return the number of items that are not skipped."""
        return len(self.positions) - len(self.left_out)

    def quarantined(self) -> list[int]:
        """Return the positions of the skipped items in the list of their kind."""
        return [int(self.positions[number]) for number in self.left_out]


def take_whole_units(items: BucketItems, unit: int) -> BucketItems:
    """Return the first used items, as many as make whole units."""
    used = np.delete(np.asarray(items.positions, np.int64), items.left_out)
    return BucketItems(used[: len(used) // unit * unit])


def _items(given: int | Sequence[BucketItems]) -> Sequence[BucketItems]:
    return [BucketItems(range(given))] if isinstance(given, int) else given


class Sampler(Protocol):
    """Protocol between loader and sampler: the `SampleRef`s of this rank, step by step, and a state."""

    endless: bool
    """True if `steps` has no end, so that the next epoch continues where the last one stopped."""

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        ...

    def steps(self) -> Iterator[list[SampleRef]]:
        """Yield the `SampleRef`s of this rank for every step, from the sampler's position on."""
        ...

    def advance(self) -> None:
        """Note that the batch of a step was handed to the training loop."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the sampler."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to the position at which a state was saved."""
        ...


class JointSampler:
    """Yield this rank's share of the videos and images of each step.

    Every step is of one bucket. In each bucket, videos and images have epochs of their own, at the ratio of their numbers per batch.
    Within an epoch no item comes twice and none is left out, also where the counts do not divide (a batch then spans two epochs).
    Buckets come in proportion to their number of videos (of images, where there are no videos). A bucket that lacks a kind of the batch
    never comes.
    An epoch of the sampler is one pass over the videos of all buckets, rounded up; over the images where there are no videos.

    The state counts the samples of all ranks, and also the quarantined ones that were skipped. So the order continues exactly on any
    number of ranks, and also under another quarantine. An item that is newly quarantined is skipped. An item that is free again comes
    if its place still lies ahead. All others come as before, with one exception. If a quarantine removes the last sample of a kind
    from a bucket, the order of the buckets changes from then on.

    Args:
        videos: Number of clips, or the clips of each bucket.
        images: Number of images, or the images of each bucket.
        videos_per_batch: Clips of the global batch.
        images_per_batch: Images of the global batch.
        rank: Number of this rank.
        ranks: Number of ranks that share the global batch. Each gets a contiguous part of it.
        seed: Seed of the order, at least 0.

    Raises:
        ValueError: The batch is empty, or the ranks do not divide a number per batch. Also: the data lacks a kind that the batch has,
            or no bucket has both kinds.
    """

    endless = True

    def __init__(
        self,
        videos: int | Sequence[BucketItems],
        images: int | Sequence[BucketItems],
        videos_per_batch: int,
        images_per_batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
    ) -> None:
        self._items: dict[Kind, Sequence[BucketItems]] = {"video": _items(videos), "image": _items(images)}
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
        # Count the skipped items too: the order of the buckets must not depend on the quarantine.
        shares = [len(items.positions) if there else 0 for items, there in zip(leading, whole, strict=True)]
        self._steps = -(-sum(items.used for items, there in zip(leading, whole, strict=True) if there) // self._per_batch[self._leading])
        self._bucket = BucketOrder(shares, -(-sum(shares) // self._per_batch[self._leading]), seed)
        self._consumed: dict[Kind, list[int]] = {kind: [0] * len(items) for kind, items in self._items.items()}
        self._step = 0
        self._rank = rank
        self._ranks = ranks

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return self._steps

    def __iter__(self) -> Iterator[list[SampleRef]]:
        """Yield the `SampleRef`s of an epoch, from the sampler's position on."""
        return islice(self.steps(), len(self))

    def steps(self) -> Iterator[list[SampleRef]]:
        """Yield the `SampleRef`s of every step from the sampler's position on, without end. Workers may run ahead of `advance`."""
        consumed = {kind: list(counts) for kind, counts in self._consumed.items()}
        step = self._step
        while True:
            bucket = self._bucket[step]
            yield [
                *self._share("video", bucket, consumed["video"][bucket], first_index=0),
                *self._share("image", bucket, consumed["image"][bucket], first_index=self._per_batch["video"]),
            ]
            self._count(consumed, bucket)
            step += 1

    def _share(self, kind: Kind, bucket: int, position: int, first_index: int) -> Iterator[SampleRef]:
        share = self._per_batch[kind] // self._ranks
        for place in range(self._rank * share, (self._rank + 1) * share):
            number, epoch = self._order[kind][bucket].index(position + place)
            yield SampleRef(kind, int(self._items[kind][bucket].positions[number]), epoch, first_index + place, bucket)

    def _count(self, consumed: dict[Kind, list[int]], bucket: int) -> None:
        for kind, per_batch in self._per_batch.items():
            consumed[kind][bucket] += per_batch

    def advance(self) -> None:
        """Note that one global batch was handed to the training loop."""
        self._count(self._consumed, self._bucket[self._step])
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the steps made, and for each kind and bucket the epoch and the place in it.

        Any number of ranks can continue from this state.
        """
        return {
            "step": self._step,
            **{f"{kind}s": self._marks(kind) for kind in _KINDS},
            "items": self._fingerprint,
            "quarantined": {kind: [place for items in self._items[kind] for place in items.quarantined()] for kind in _KINDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the samples that were consumed, and warn where that is not exact.

        Raises:
            ValueError: The state is of another number of buckets.
        """
        for kind in _KINDS:
            marks = state[f"{kind}s"]
            if len(marks) != len(self._items[kind]):
                raise ValueError(
                    f"data.buckets has {len(self._items[kind])} sizes, but the checkpoint was written with {len(marks)}: set them back, "
                    "or start over with --from_scratch true"
                )
        self._step = state["step"]
        same = state.get("items", self._fingerprint) == self._fingerprint
        if not same:
            warnings.warn(
                "the clips and images that fit have changed since the checkpoint was written (another index, other sizes or frames): the "
                "interrupted epochs are not finished, new ones begin",
                stacklevel=2,
            )
        for kind in _KINDS:
            for bucket, (epoch, place) in enumerate(state[f"{kind}s"]):
                order = self._order[kind][bucket]
                mark = (epoch, place) if same else (epoch + (place > 0), 0)
                self._consumed[kind][bucket] = order.position(*mark) if order.used else 0
            if same:
                self._warn_quarantine(kind, set(state.get("quarantined", {}).get(kind, [])))

    def _warn_quarantine(self, kind: Kind, before: set[int]) -> None:
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
        """Return a hash of the items that the order is made of, quarantined ones included."""
        digest = hashlib.sha256()
        for kind in _KINDS:
            for items in self._items[kind]:
                digest.update(f"{kind} {len(items.positions)}".encode())
                if not isinstance(items.positions, range):
                    digest.update(np.ascontiguousarray(items.positions).data)
        return digest.hexdigest()


class SequentialSampler:
    """Yield the first clips and images once, in order, for validation. Every epoch is equal.

    The buckets come one after the other. Each step has videos and images in the numbers of the training batch until one kind runs out.
    The last batch of a bucket may be smaller. The counts must divide by the ranks, so that all ranks make equally many steps.

    Args:
        videos: Number of clips, or the clips of each bucket.
        images: Number of images, or the images of each bucket.
        videos_per_batch: Clips of the global batch.
        images_per_batch: Images of the global batch.
        rank: Number of this rank.
        ranks: Number of ranks that share the global batch.
    """

    endless = False

    def __init__(
        self,
        videos: int | Sequence[BucketItems],
        images: int | Sequence[BucketItems],
        videos_per_batch: int,
        images_per_batch: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._items: dict[Kind, Sequence[BucketItems]] = {"video": _items(videos), "image": _items(images)}
        self._per_batch: dict[Kind, int] = {"video": videos_per_batch, "image": images_per_batch}
        counts = [items.used for of_kind in self._items.values() for items in of_kind]
        assert all(number % ranks == 0 for number in (*counts, *self._per_batch.values()))
        assert not any(len(items.left_out) for of_kind in self._items.values() for items in of_kind)
        self._rank = rank
        self._ranks = ranks

    def __len__(self) -> int:
        """Return the number of steps until both kinds of all buckets have run out."""
        return sum(map(self._steps_of, range(len(self._items["video"]))))

    def __iter__(self) -> Iterator[list[SampleRef]]:
        """Yield the `SampleRef`s of this rank, all of epoch 0."""
        return self.steps()

    def steps(self) -> Iterator[list[SampleRef]]:
        """Yield the `SampleRef`s of this rank, all of epoch 0."""
        for bucket in range(len(self._items["video"])):
            for step in range(self._steps_of(bucket)):
                videos = self._share("video", bucket, step, first_index=0)
                yield [*videos, *self._share("image", bucket, step, self._per_batch["video"])]

    def _steps_of(self, bucket: int) -> int:
        return max(-(-self._items[kind][bucket].used // per_batch) for kind, per_batch in self._per_batch.items() if per_batch)

    def _share(self, kind: Kind, bucket: int, step: int, first_index: int) -> Iterator[SampleRef]:
        items, start = self._items[kind][bucket], step * self._per_batch[kind]
        share = max(0, min(self._per_batch[kind], items.used - start)) // self._ranks
        for place in range(self._rank * share, (self._rank + 1) * share):
            yield SampleRef(kind, int(items.positions[start + place]), 0, first_index + place, bucket)

    def advance(self) -> None:
        """Do nothing: validation always starts at the first sample."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state to restore."""
