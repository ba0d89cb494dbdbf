"""The protocol of an extractor: clips in, a row of numbers for each out. Its file is compared by hash before it is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Clips as they are measured: uint8, each of its own size."""

    clips: Sequence[Tensor]
    """Pixels of each clip, uint8 [t h w 3]; an image is a clip of one frame."""
    originals: Sequence[Tensor] | None = None
    """The real clip of each generated one, for metrics of pairs; None for unpaired clips."""
    captions: Sequence[str] = ()
    """Caption of each clip, or nothing."""
    labels: Sequence[int] = ()
    """Class number of each clip, or nothing."""

    def __len__(self) -> int:
        return len(self.clips)


class Extractor(ABC):
    """A network, or a formula, that turns each clip into rows."""

    kind: ClassVar[str]
    """Name in commands and cards, such as i3d."""
    gives: ClassVar[tuple[str, ...]]
    """Names of its rows: video_features, image_features, class_logits, psnr, ssim, lpips, clip_similarity, shapes."""
    of_pairs: ClassVar[bool] = False
    """True if it compares each clip with its original, so that real clips have no rows of their own."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that determines its rows, for card and cache: kind, file, sha256, resize, ..."""

    @abstractmethod
    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Return rows by name, float32 [b d] on the CPU. A clip's row does not depend on the others, up to rounding.

        Raises:
            ValueError: a clip has too few frames, or lacks the caption or the original that is needed.
        """
