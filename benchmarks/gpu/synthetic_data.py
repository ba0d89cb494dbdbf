"""Random clips and images in the project's own loader: the same item has the same content in every process."""

from collections.abc import Iterator
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from walt_pl.data.batch import Sample, SampleRef, Space
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler

CAPTIONS = ("a plain red circle moving left", "a dotted blue bar growing", "a striped green square turning")
ITEMS = 1000
"""Videos, and images, of an epoch."""


@dataclass(frozen=True)
class SyntheticSource:
    """Read noise by item."""

    shape: tuple[int, int, int, int]
    """[c t h w] of a video; an image has one frame of it."""
    space: Space
    classes: int
    low_res: bool
    """True for a sample with a low-resolution copy, of half the rows and columns."""

    def __getitem__(self, draw: SampleRef) -> Sample:
        generator = torch.Generator().manual_seed(2 * draw.item + (draw.kind == "image"))
        content = self._noise(self.shape, draw, generator)
        c, t, h, w = self.shape
        low_res = self._noise((c, t, h // 2, w // 2), draw, generator) if self.low_res else None
        caption, label = CAPTIONS[draw.item % len(CAPTIONS)], draw.item % self.classes if self.classes else -1
        return Sample(draw, content, low_res, caption, label, f"{draw.kind} {draw.item}", "", self.space)

    def _noise(self, shape: tuple[int, int, int, int], draw: SampleRef, generator: torch.Generator) -> Tensor:
        c, t, h, w = shape
        noise = torch.randn(c, t if draw.kind == "video" else 1, h, w, generator=generator)
        return noise.clamp(-1, 1) if self.space == "pixels" else noise

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        raise AssertionError(f"noise cannot fail: {reason}")


class SyntheticData(L.LightningDataModule):
    """Endless joint batches of noise, with the parts of JointData that a stage asks for."""

    def __init__(self, source: SyntheticSource, videos_per_batch: int, images_per_batch: int) -> None:
        super().__init__()
        self.source = source
        self.videos_per_batch = videos_per_batch
        self.images_per_batch = images_per_batch

    def train_dataloader(self) -> JointLoader:
        images = ITEMS if self.images_per_batch else 0
        return JointLoader(self.source, JointSampler(ITEMS, images, self.videos_per_batch, self.images_per_batch))

    def classes(self) -> dict[int, str]:
        return dict.fromkeys(range(self.source.classes), "")

    def captions(self, validation: bool = False) -> Iterator[str]:
        yield from CAPTIONS
