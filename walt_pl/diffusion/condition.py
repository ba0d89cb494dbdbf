"""Conditions of a denoiser: its inputs beside the noisy latents."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from walt_pl.blocks.frames import FrameLayout

OVER_FRAMES = ("context_latents", "context_mask", "low_res")
"""Fields of a condition that are over frames; the other tensors are over samples."""


@dataclass(frozen=True)
class Condition:
    """Conditions of a joint batch. Tensors over samples are [s ...], over frames [f ...] (see `FrameLayout`)."""

    layout: FrameLayout
    condition_kept: Tensor
    """[s] bool: whether the network sees the caption or label; where false, it sees the learned null."""
    text: Tensor | None = None
    """[s l e] tokens of the text encoder."""
    text_mask: Tensor | None = None
    """[s l] bool, true for words."""
    labels: Tensor | None = None
    """[s] class numbers."""
    context_latents: Tensor | None = None
    """[f c h w] clean normalised latents of the context frames."""
    context_mask: Tensor | None = None
    """[f 1 h w] one in context frames, zero elsewhere."""
    low_res: Tensor | None = None
    """[f c h/2 w/2] normalised low-resolution latents, noised."""
    noise_aug_level: Tensor | None = None
    """[s] noise augmentation level: the timestep at which `low_res` is noised."""

    def double(self, other: "Condition") -> "Condition":
        """Return two conditions of one layout as one, in the order of `FrameLayout.doubled`.

        The other of the two gets zeros where one alone has context frames: the null of frame prediction. The shorter text is padded.
        """
        assert other.layout == self.layout
        layout, tensors = self.layout, {}
        for item in fields(self):
            first, second = getattr(self, item.name), getattr(other, item.name)
            if not isinstance(first, Tensor) and not isinstance(second, Tensor):
                continue
            if item.name in ("context_latents", "context_mask"):
                first, second = (torch.zeros_like(b) if a is None else a for a, b in ((first, second), (second, first)))
            elif item.name in ("text", "text_mask"):
                first, second = _pad_text(first, second)
            put = layout.double_frames if item.name in OVER_FRAMES else layout.double_samples
            tensors[item.name] = put(first, second)
        return replace(self, layout=layout.doubled(), **tensors)

    def replace_context(self, context_latents: Tensor, mask: Tensor) -> "Condition":
        """Return the condition with `context_latents` [f c h w] as context where `mask` [f 1 h w] is one."""
        return replace(self, context_latents=context_latents, context_mask=mask)

    def with_context(self, x0: Tensor, count: Tensor) -> "Condition":
        """Return the condition with the first frames of each video as context frames; images never are context.

        Args:
            x0: clean normalised latents [f c h w].
            count: number of context frames of each sample, int64 [s]; 0 for none.
        """
        layout = self.layout
        place = torch.arange(layout.frames, device=x0.device).repeat(layout.videos)
        videos = place < count[: layout.videos].repeat_interleave(layout.frames)
        mask = torch.cat([videos, videos.new_zeros(layout.images)])
        shape = (len(mask), 1, *x0.shape[2:])
        return self.replace_context(x0, mask[:, None, None, None].expand(shape).to(x0.dtype))

    def fill_context(self, x0: Tensor) -> Tensor:
        """Return the estimate `x0` [f c h w] with its context frames replaced by the known latents."""
        if self.context_latents is None or self.context_mask is None:
            return x0
        return torch.where(self.context_mask.bool(), self.context_latents, x0)

    def without_text(self) -> "Condition":
        """Return the condition with every caption and label dropped, for the unconditional branch of guidance."""
        return replace(self, condition_kept=torch.zeros_like(self.condition_kept))

    def without_context(self) -> "Condition":
        """Return the condition without context frames: the null of frame prediction is zeros with a zero mask."""
        return replace(self, context_latents=None, context_mask=None)


def _pad_text(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pad tokens [s l e], or masks [s l], of two texts with zeros to one length."""
    length = max(first.shape[1], second.shape[1])
    after = (0, 0) * (first.dim() - 2)
    padded = [F.pad(x, (*after, 0, length - x.shape[1])) for x in (first, second)]
    return padded[0], padded[1]


Derived = TypeVar("Derived")


def derive_once(function: Callable[[Condition], Derived]) -> Callable[[Condition], Derived]:
    """Return a function that remembers its value for the last condition: a sampling has one condition for all its steps."""
    last: list[tuple[Condition, Derived]] = []

    def derive(condition: Condition) -> Derived:
        if not last or last[0][0] is not condition:
            last[:] = [(condition, function(condition))]
        return last[0][1]

    return derive
