"""Choose the validation clips that a training measures its metrics on, and read them in fixed blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from walt_pl.data.batch import BucketedSource, Kind, SampleRef, SampleSource
from walt_pl.data.cache_layout import whole_transform
from walt_pl.data.latent_dataset import LatentDataset
from walt_pl.data.loader import JointLoader
from walt_pl.data.selection import Bucket, Selection
from walt_pl.data.transforms import ClipTransform, PixelDataset

BLOCK = 4
"""Clips that are generated at once. It is fixed, so that sums are rounded alike on any number of ranks."""


class BlockSampler:
    """Yield the clips of some blocks, in order."""

    endless = False

    def __init__(self, blocks: Sequence[list[SampleRef]]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.blocks)

    def steps(self) -> Iterator[list[SampleRef]]:
        """Yield the clips of each block."""
        return iter(self.blocks)

    def advance(self) -> None:
        """Do nothing: reading always starts at the first block."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state to restore."""


def choose_blocks(selections: Mapping[Kind, Selection], buckets: int, samples: int, at_most: int) -> list[list[SampleRef]]:
    """Return the first videos of a selection in blocks of one size of picture; the first images where there are no videos.

    The place of a clip in this order is its `global_batch_index`, which seeds its noise.

    Args:
        selections: of the validation split.
        buckets: number of sizes of pictures.
        samples: number of clips.
        at_most: number of validation clips (data.val_videos).

    Raises:
        ValueError: there are fewer clips.
    """
    kind: Kind = "video" if "video" in selections else "image"
    positions = selections[kind].positions()[:at_most]
    if not len(positions):
        raise ValueError("metrics.every_steps is set, but nothing is validated: set data.val_videos above 0, or --metrics.every_steps 0")
    if len(positions) < samples:
        raise ValueError(
            f"metrics.samples is {samples}, but there are {len(positions)} {kind}s to validate on (data.val_videos {at_most}): type "
            f"--metrics.samples {len(positions)}, or raise data.val_videos and index more of the split val"
        )
    blocks = []
    for bucket in range(buckets):
        refs = [
            SampleRef(kind, int(item), 0, place, bucket)
            for place, item in enumerate(positions[:samples])
            if selections[kind].bucket[item] == bucket
        ]
        blocks += [refs[start : start + BLOCK] for start in range(0, len(refs), BLOCK)]
    return blocks


@dataclass(frozen=True)
class MeasuredClips:
    """Validation clips in blocks, as the stage reads them and as pixels. Both are view 0: frame 0 and the centre."""

    blocks: list[list[SampleRef]]
    """Clips that are generated at once, each block of one size."""
    clip_transform: ClipTransform
    """Says which frames are read."""
    buckets: Sequence[Bucket]
    sources: Sequence[SampleSource]
    """Source of each bucket that the stage reads: pixels, or latents of a cache."""
    num_workers: int
    timeout: float
    patience: float

    def inputs(self, blocks: Sequence[int]) -> JointLoader:
        """Return a loader of blocks as the stage reads them; the caller closes it."""
        return self._loader(blocks, self.sources)

    def pixels(self, blocks: Sequence[int]) -> JointLoader | None:
        """Return a loader of the pixels of blocks; None where the stage reads pixels itself. The caller closes it."""
        if not any(isinstance(source, LatentDataset) for source in self.sources):
            return None
        return self._loader(blocks, [self._pixels(source, *bucket) for source, bucket in zip(self.sources, self.buckets, strict=True)])

    def _pixels(self, source: SampleSource, rows: int, columns: int) -> PixelDataset:
        assert isinstance(source, LatentDataset)
        return PixelDataset(source.videos, source.images, whole_transform(self.clip_transform, rows, columns, views=1))

    def _loader(self, blocks: Sequence[int], sources: Sequence[SampleSource]) -> JointLoader:
        sampler = BlockSampler([self.blocks[number] for number in blocks])
        return JointLoader(BucketedSource(sources), sampler, self.num_workers, self.timeout, self.patience)
