"""A video between its sampling and the decoding of its end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampledVideo:
    """A video of which the last segment is not decoded yet."""

    pieces: Sequence[Tensor]
    """Pixels of the segments before, without overlap."""
    latents: Tensor
    """Raw latents of the last segment [b c t h w]."""
    overlap: int
    """First pixel frames of the last segment that the segment before has shown."""
    frames: int
    """Length of the video."""

    def join(self, clips: Tensor) -> Tensor:
        """Return the video [b 3 frames h w] with the decoded last segment [b 3 T H W]."""
        return torch.cat([*self.pieces, clips[:, :, self.overlap :]], dim=2)[:, :, : self.frames]
