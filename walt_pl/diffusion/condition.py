"""What a denoiser may know about the samples of a batch, beside their noisy latents."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from walt_pl.blocks.frames import Layout


@dataclass(frozen=True)
class Condition:
    """Conditions of a joint batch. Tensors over samples are [s ...], over frames [f ...] (see :class:`Layout`)."""

    layout: Layout
    keep: Tensor
    """[s] bool: whether the caption or label is known; false takes the learned null."""
    text: Tensor | None = None
    """[s l e] tokens of the text encoder."""
    text_mask: Tensor | None = None
    """[s l] bool, true for words."""
    labels: Tensor | None = None
    """[s] class numbers."""
    past: Tensor | None = None
    """[f c h w] clean normalised latents, where known."""
    past_mask: Tensor | None = None
    """[f 1 h w] one where the latent is known."""
    low: Tensor | None = None
    """[f c h/2 w/2] normalised low-resolution latents, noised."""
    low_step: Tensor | None = None
    """[s] noise level of ``low``."""

    def select(self, rows: Tensor) -> "Condition":
        """The same for the samples where ``rows`` [s] is true."""
        frames = self.layout.per_frame(rows)
        over_frames = {"past", "past_mask", "low"}
        picked = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                picked[item.name] = value[frames if item.name in over_frames else rows]
        return replace(self, layout=self.layout.select(rows), **picked)

    def given(self, past: Tensor, mask: Tensor) -> "Condition":
        """The same with ``past`` [f c h w] known where ``mask`` [f 1 h w] is one."""
        return replace(self, past=past, past_mask=mask)

    def with_past(self, x0: Tensor, count: Tensor) -> "Condition":
        """The same with the first ``count`` [s] frames of each video of ``x0`` [f c h w] known; images are never given."""
        layout = self.layout
        place = torch.arange(layout.frames, device=x0.device).repeat(layout.videos)
        videos = place < count[: layout.videos].repeat_interleave(layout.frames)
        mask = torch.cat([videos, videos.new_zeros(layout.images)])
        shape = (len(mask), 1, *x0.shape[2:])
        return self.given(x0, mask[:, None, None, None].expand(shape).to(x0.dtype))

    def known(self, x0: Tensor) -> Tensor:
        """An estimate ``x0`` [f c h w] with the given past in its place: what is known need not be estimated."""
        if self.past is None or self.past_mask is None:
            return x0
        return torch.where(self.past_mask.bool(), self.past, x0)

    def without_text(self) -> "Condition":
        """The same with every caption and label dropped: the unconditional branch of guidance."""
        return replace(self, keep=torch.zeros_like(self.keep))

    def without_past(self) -> "Condition":
        """The same with nothing known of the past: the null of frame prediction is zeros with a zero mask."""
        return replace(self, past=None, past_mask=None)
