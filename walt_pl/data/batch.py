"""The contract between data and stages: the joint batch of videos and images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from walt_pl.blocks.transfer import to_device

Kind = Literal["video", "image"]
Space = Literal["pixels", "latents"]


class DataError(RuntimeError):
    """Data that cannot be used for training. The message names the files."""


class SampleRef(NamedTuple):
    """Reference to the sample at one position of a global batch."""

    kind: Kind
    """The list in which `item` counts."""
    item: int
    """Number of the clip or image in its list."""
    epoch: int
    """Number of earlier passes over the list; together with `item` it seeds crops and views."""
    global_batch_index: int
    """Position in the global batch: videos first, then images."""
    bucket: int = 0
    """Number of the size that the whole batch has."""


@dataclass
class Sample:
    """One clip or image, ready to be put into a batch."""

    draw: SampleRef
    content: Tensor
    """[c t h w], pixels in -1..1 or a raw latent; zeros where the file could not be read."""
    low_res: Tensor | None
    """The low-resolution copy [c t h' w']; None outside super-resolution."""
    caption: str
    label: int
    path: str
    failure: str
    """Reason why the file could not be read; empty if it could."""
    space: Space


@dataclass
class JointBatch:
    """Videos and unrelated images of one rank and step.

    A sample that could not be read keeps its place in the batch, with zeros for content and weight 0.
    """

    videos: Tensor
    """[v c t h w], pixels in -1..1 or raw (not normalised) latents, see `space`."""
    images: Tensor
    """[i c 1 h w], i = stacks * images_per_stack unrelated images, each a one-frame video."""
    captions: list[str]
    """v + i captions, videos first."""
    labels: Tensor
    """[v+i] int64 classes, -1 where there is none; always on the CPU."""
    weight: Tensor
    """[v+i] float32, 1, or 0 where the sample could not be read."""
    global_batch_index: Tensor
    """[v+i] int64 positions in the global batch; they seed the randomness of a sample. Always on the CPU."""
    low_res_videos: Tensor | None
    """[v c t h' w'] low-resolution copies of the videos (super-resolution only)."""
    low_res_images: Tensor | None
    """[i c 1 h' w'] low-resolution copies of the images (super-resolution only)."""
    space: Space
    """Content of `videos` and `images`: pixels or latents."""
    paths: list[str]
    """v + i files, for messages."""

    def to(self, device: torch.device | str) -> "JointBatch":
        """Return the batch with its tensors on `device`, without waiting for it.

        The host reads labels and positions in every step, so they stay on the CPU.
        """
        moved = self._each(lambda tensor: to_device(tensor, device))
        return replace(moved, labels=self.labels, global_batch_index=self.global_batch_index)

    def pin_memory(self) -> "JointBatch":
        """Return the batch in page-locked memory; the loader calls this on machines with a GPU."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "JointBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def first_videos(batch: JointBatch, count: int) -> JointBatch:
    """Return the first `count` videos of a batch, without its images."""
    v = min(count, len(batch.videos))
    return JointBatch(
        videos=batch.videos[:v],
        images=batch.images[:0],
        captions=batch.captions[:v],
        labels=batch.labels[:v],
        weight=batch.weight[:v],
        global_batch_index=batch.global_batch_index[:v],
        low_res_videos=None if batch.low_res_videos is None else batch.low_res_videos[:v],
        low_res_images=None if batch.low_res_images is None else batch.low_res_images[:0],
        space=batch.space,
        paths=batch.paths[:v],
    )


def images_as_videos(batch: JointBatch) -> JointBatch:
    """Return a batch of images alone as one of one-frame videos, as `sample` makes images."""
    if len(batch.videos):
        return batch
    return replace(
        batch,
        videos=batch.images,
        images=batch.images[:0],
        low_res_videos=batch.low_res_images,
        low_res_images=batch.low_res_videos,
    )


def of_conditions(batch: JointBatch, captions: Sequence[str], labels: Sequence[int], first: int) -> JointBatch:
    """Return a batch of videos with captions and labels that a person chose, in the shape of the videos of a batch.

    Args:
        batch: at least one video, or image, whose content stands for that of all; without low-resolution copies.
        captions: one for each video.
        labels: one for each video, -1 where there is none.
        first: position of the first one, which seeds its noise.
    """
    one, count = first_videos(images_as_videos(batch), 1), len(captions)
    return replace(
        one,
        videos=one.videos.expand(count, -1, -1, -1, -1),
        captions=list(captions),
        labels=torch.tensor(labels, dtype=torch.int64),
        weight=one.weight.new_ones(count),
        global_batch_index=torch.arange(first, first + count),
        paths=[""] * count,
    )


class SampleSource(Protocol):
    """Read samples. A source is pickled once for each worker, so it holds descriptions of the data and no open files."""

    def __getitem__(self, draw: SampleRef) -> Sample:
        """Read the sample of a position of a batch. If the file cannot be read, return `failed(draw, reason)`."""
        ...

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        """Return the zeros that stand for a file, without reading it."""
        ...


class BucketedSource:
    """Read every sample from the source of its bucket.

    Args:
        sources: One for each bucket.
    """

    def __init__(self, sources: Sequence[SampleSource]) -> None:
        self.sources = sources

    def __getitem__(self, draw: SampleRef) -> Sample:
        """Read one clip or image at the size of its bucket."""
        return self.sources[draw.bucket][draw]

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        """Return zeros of the size of its bucket."""
        return self.sources[draw.bucket].replace_failed(draw, reason)


class ReadFailure(NamedTuple):
    """A file that could not be read."""

    path: str
    reason: str


def collate(samples: Sequence[Sample]) -> tuple[JointBatch, list[ReadFailure]]:
    """Put the samples of one rank into a batch, videos first.

    Args:
        samples: At least one. All videos have one shape, and all images have one shape.

    Returns:
        The batch, and the files among its samples that could not be read.
    """
    videos = [sample for sample in samples if sample.draw.kind == "video"]
    images = [sample for sample in samples if sample.draw.kind == "image"]
    ordered = [*videos, *images]
    add_low_res = ordered[0].low_res is not None
    batch = JointBatch(
        videos=_stack([sample.content for sample in videos], like=ordered[0].content),
        images=_stack([sample.content for sample in images], like=ordered[0].content[:, :1]),
        captions=[sample.caption for sample in ordered],
        labels=torch.tensor([sample.label for sample in ordered], dtype=torch.int64),
        weight=torch.tensor([0.0 if sample.failure else 1.0 for sample in ordered], dtype=torch.float32),
        global_batch_index=torch.tensor([sample.draw.global_batch_index for sample in ordered], dtype=torch.int64),
        low_res_videos=_stack(_lows(videos), like=_lows(ordered)[0]) if add_low_res else None,
        low_res_images=_stack(_lows(images), like=_lows(ordered)[0][:, :1]) if add_low_res else None,
        space=ordered[0].space,
        paths=[sample.path for sample in ordered],
    )
    return batch, [ReadFailure(sample.path, sample.failure) for sample in ordered if sample.failure]


def _lows(samples: Sequence[Sample]) -> list[Tensor]:
    return [sample.low_res for sample in samples if sample.low_res is not None]


def _stack(tensors: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(tensors) if tensors else like.new_zeros(0, *like.shape)
