"""Read clips and images as latents from their caches."""

from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import Dataset

from walt_pl.data.batch import Kind, Sample, SampleRef
from walt_pl.data.cache import LatentCache
from walt_pl.data.caption_draw import draw_caption
from walt_pl.data.index import IndexEntry


class LatentDataset(Dataset[Sample]):
    """Read clips and images as latents from caches, by `SampleRef`.

    Args:
        videos: Entries of the clips.
        images: Entries of the images.
        caches: An opened cache for each kind that is read.
        low_res_caches: Opened caches of the low-resolution copies (super-resolution), or None.
        caption_seed: Seed of the draw among several captions of a clip; None takes the first.
    """

    def __init__(
        self,
        videos: Sequence[IndexEntry],
        images: Sequence[IndexEntry],
        caches: Mapping[Kind, LatentCache],
        low_res_caches: Mapping[Kind, LatentCache] | None = None,
        caption_seed: int | None = None,
    ) -> None:
        self.videos = videos
        self.images = images
        self.caches = caches
        self.low_res_caches = low_res_caches
        self.caption_seed = caption_seed

    def __getitem__(self, draw: SampleRef) -> Sample:
        """Read the latent [c t h w] of one clip or image, with its low-resolution copy if there is one."""
        entry = self._entry(draw)
        content, failure = self.caches[draw.kind].read(draw.item, draw.epoch)
        low_res = None
        if self.low_res_caches is not None:
            low_res, low_failure = self.low_res_caches[draw.kind].read(draw.item, draw.epoch)
            failure = failure or low_failure
        caption = draw_caption(entry, draw, self.caption_seed)
        return Sample(draw, content, low_res, caption, entry.label, str(entry.place), failure, "latents")

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        """Return zeros in place of latents."""
        entry = self._entry(draw)
        low_res = None if self.low_res_caches is None else torch.zeros(self.low_res_caches[draw.kind].shape, dtype=torch.float32)
        content = torch.zeros(self.caches[draw.kind].shape, dtype=torch.float32)
        return Sample(draw, content, low_res, entry.caption, entry.label, str(entry.place), reason, "latents")

    def _entry(self, draw: SampleRef) -> IndexEntry:
        return (self.videos if draw.kind == "video" else self.images)[draw.item]
