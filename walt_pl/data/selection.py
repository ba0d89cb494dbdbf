"""Select the clips and images of an index for training, with their sizes, and give the reasons for the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from walt_pl.data.batch import Kind
from walt_pl.data.index import IndexEntries
from walt_pl.data.sampler import BucketItems
from walt_pl.data.transforms import ClipTransform

USED, QUARANTINED, SHORT, SMALL, SIZELESS, BEYOND, ALONE, LARGE, UNLABELLED, OTHER_CLASS = range(10)
REASONS = (
    "used",
    "quarantined",
    "too short",
    "smaller than every size of data.buckets",
    "without width and height in the index",
    "beyond the first ones that were asked for",
    "alone: the sizes of data.buckets that it fits have nothing of the other kind",
    "of more than data.max_pixels rows x columns",
    "without a label",
    "with a label outside of the model's classes",
)
_ROWS = 1 << 20
"""Entries that are processed at once: ten million entries need no more memory than these."""


class Bucket(NamedTuple):
    """Size of the pictures of a batch, in pixels."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"


def check_buckets(buckets: Sequence[Bucket], clip_transform: ClipTransform) -> None:
    """Check the sizes of `data.buckets` against the rest of the configuration.

    Raises:
        ValueError: They do not fit together.
    """
    low = clip_transform.low_res_size or clip_transform.size
    if clip_transform.crop is not None:
        raise ValueError("data.buckets sorts whole pictures and data.crop draws windows of one size: leave out one of them")
    if clip_transform.aspect != 1.0:
        raise ValueError("data.buckets has rows and columns of its own: leave out data.aspect")
    if len(set(buckets)) < len(buckets):
        raise ValueError(f"data.buckets names a size twice: {', '.join(map(str, buckets))}")
    for bucket in buckets:
        if min(bucket) < 1:
            raise ValueError(f"data.buckets: rows and columns must be at least 1, got {bucket}")
        if any(side * low % clip_transform.size for side in bucket):
            raise ValueError(
                f"data.buckets: {bucket} times data.low_res_size / data.size = {low} / {clip_transform.size} is no number of pixels"
            )


@dataclass(frozen=True)
class Selection:
    """The decision for each clip (or image) of a split."""

    bucket: NDArray[np.int16]
    """[n] number of the bucket of an entry, quarantined or not; -1 where no bucket fits."""
    reason: NDArray[np.uint8]
    """[n] USED, or the reason why it is not used: a number in REASONS."""
    of_classes: bool
    """True if the model has no class for an entry, quarantined or not: `bucket` then has fewer entries than without classes."""

    @property
    def used(self) -> int:
        """Return the number of entries that are used."""
        return int((self.reason == USED).sum())

    def left_out(self) -> dict[str, int]:
        """Return the number of entries that are not used, by reason."""
        counts = np.bincount(self.reason, minlength=len(REASONS))
        return {REASONS[number]: int(count) for number, count in enumerate(counts) if count and number != USED}

    def positions(self) -> NDArray[np.int64]:
        """Return the positions of the used entries in their list, ascending."""
        return np.flatnonzero(self.reason == USED)

    def items(self, bucket: int) -> BucketItems:
        """Return the entries of a bucket as the sampler needs them."""
        places = np.flatnonzero(self.bucket == bucket)
        left_out = np.flatnonzero(self.reason[places] != USED)
        return BucketItems(range(len(places)) if len(places) == len(self.bucket) else places, left_out)


def select(
    entries: Mapping[Kind, IndexEntries],
    clip_transform: ClipTransform,
    buckets: Sequence[Bucket],
    quarantined: Mapping[Kind, NDArray[np.int64]],
    limit: int = 0,
    num_classes: int | None = None,
) -> dict[Kind, Selection]:
    """Decide for every entry of a split whether it is used, and in which bucket.

    A picture fits the buckets that it covers without being enlarged. It goes into the one that crops least, and of equal ones into the
    largest. A bucket in which a kind has no entry is closed, because a batch holds both kinds at one size. Its entries go into the next
    best bucket; those that fit no other are alone. A single bucket accepts every picture, however much it must be enlarged or cropped.

    Args:
        entries: Entries of each kind that a batch has.
        clip_transform: Says how long a clip must be.
        buckets: Sizes of the batches.
        quarantined: Positions of the quarantined entries in the lists, ascending.
        limit: Use only the first `limit` of each kind that fit; 0 uses all.
        num_classes: Classes of the model, whose labels are 0 to num_classes - 1; None for a model without classes.

    Returns:
        A selection for each kind. Where a kind is missing, or no bucket has all kinds, training cannot begin (`find_problem`).
        Then each entry is judged by itself, as if every bucket had the other kind.
    """
    first: dict[Kind, Selection] = {}
    open_ = list(range(len(buckets)))
    while True:
        found = {
            kind: _select(kind, listed, clip_transform, buckets, open_, quarantined[kind], limit, num_classes)
            for kind, listed in entries.items()
        }
        first = first or found
        there = {number: [bool((s.reason[s.bucket == number] == USED).any()) for s in found.values()] for number in open_}
        lacking = [number for number, kinds in there.items() if any(kinds) and not all(kinds)]
        if not lacking or not all(selection.used for selection in first.values()):
            break
        # Close the largest: its pictures fit into smaller buckets, and no smaller picture fits into it.
        open_.remove(max(lacking, key=lambda number: buckets[number].rows * buckets[number].columns))
    if not all(selection.used for selection in found.values()):
        return first
    for kind, selection in found.items():
        selection.reason[(selection.reason == SMALL) & (first[kind].reason != SMALL)] = ALONE
    return found


def find_problem(found: Mapping[Kind, Selection], split: str, every_kind: bool) -> str:
    """Return why a split cannot be trained or validated on, or "" if it can.

    Args:
        found: Selection of each kind.
        split: Name of the split.
        every_kind: Whether a batch must have every kind, as in training.
    """
    useless = [kind for kind, selection in found.items() if not selection.used]
    if useless if every_kind else len(useless) == len(found):
        return (
            f'no {" and no ".join(useless)} of split "{split}" can be used{"" if every_kind else "; data.val_videos 0 trains without it"}'
        )
    used = [set(selection.bucket[selection.reason == USED].tolist()) for selection in found.values()]
    if every_kind and not set.intersection(*used):
        advice = "give data.buckets a size that both fit, or set data.image_stacks_per_batch to 0"
        return f'no size of data.buckets has both videos and images of split "{split}"; {advice}'
    return ""


def _select(
    kind: Kind,
    entries: IndexEntries,
    clip_transform: ClipTransform,
    buckets: Sequence[Bucket],
    open_: Sequence[int],
    quarantined: NDArray[np.int64],
    limit: int,
    num_classes: int | None,
) -> Selection:
    bucket, reason = np.full(len(entries), -1, np.int16), np.zeros(len(entries), np.uint8)
    of_classes = False
    for start in range(0, len(entries), _ROWS):
        part = entries[start : start + _ROWS]
        here = slice(start, start + len(part))
        bucket[here], reason[here] = _assign_buckets(part, buckets, open_)
        if kind == "video":
            frames, fps, duration = (part.column(name) for name in ("frames", "fps", "duration"))
            short = frames < clip_transform.needs(frames, fps, duration)
            bucket[here][short], reason[here][short] = -1, SHORT
        large = part.column("height").astype(np.int64) * part.column("width") > clip_transform.decoding.max_pixels
        bucket[here][large], reason[here][large] = -1, LARGE
        if num_classes is not None:
            label = part.column("label")
            for why, without in ((UNLABELLED, label < 0), (OTHER_CLASS, label >= num_classes)):
                bucket[here][without], reason[here][without] = -1, why
                of_classes = of_classes or bool(without.any())
    if limit:
        beyond = np.flatnonzero(bucket >= 0)[limit:]
        bucket[beyond], reason[beyond] = -1, BEYOND
    reason[quarantined] = QUARANTINED
    return Selection(bucket, reason, of_classes)


def _assign_buckets(entries: IndexEntries, buckets: Sequence[Bucket], open_: Sequence[int]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return the bucket of each entry by its size alone, and the reason where it has none."""
    if len(buckets) == 1:
        return np.zeros(len(entries), np.int16), np.zeros(len(entries), np.uint8)
    height, width = (entries.column(name).astype(np.float64) for name in ("height", "width"))
    best, kept_of_best = np.full(len(entries), -1, np.int16), np.zeros(len(entries))
    # Largest first: a smaller bucket replaces a larger one only if it keeps more of the picture.
    for number in sorted(open_, key=lambda number: -buckets[number].rows * buckets[number].columns):
        rows, columns = buckets[number]
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.maximum(rows / height, columns / width)
            kept = rows * columns / (scale * scale * height * width)
        better = (scale <= 1) & (kept > kept_of_best + 1e-3)
        best[better], kept_of_best[better] = number, kept[better]
    sizeless = (height < 1) | (width < 1)
    reason = np.where(best >= 0, USED, np.where(sizeless, SIZELESS, SMALL)).astype(np.uint8)
    return best, reason


def describe_selection(
    split: str, selections: Mapping[Kind, Selection], buckets: Sequence[Bucket], clip_transform: ClipTransform
) -> list[str]:
    """Return the counts in words, one line for each kind and each bucket.

    Args:
        split: Name of the split.
        selections: Selection of each kind.
        buckets: Sizes of the batches.
        clip_transform: Says which frames are read of a clip.
    """
    rate = (
        f" at {clip_transform.fps:g} a second"
        if clip_transform.fps
        else f", {clip_transform.stride} apart"
        if clip_transform.stride > 1
        else ""
    )
    wanted = f" (fewer than {clip_transform.frames} frames{rate})"
    lines = []
    for kind, selection in selections.items():
        left_out = [f"{count:,} {why}{wanted if why == REASONS[SHORT] else ''}" for why, count in selection.left_out().items()]
        text = f"{split}: {selection.used:,} of {len(selection.reason):,} {kind}s used"
        lines.append(f"{text}; left out: {', '.join(left_out)}" if left_out else text)
    if len(buckets) > 1:
        used = {kind: selection.bucket[selection.reason == USED] for kind, selection in selections.items()}
        counts = {kind: np.bincount(numbers, minlength=len(buckets)) for kind, numbers in used.items()}
        lines += [
            f"  {bucket}: " + ", ".join(f"{counts[kind][number]:,} {kind}s" for kind in selections) for number, bucket in enumerate(buckets)
        ]
    return lines
