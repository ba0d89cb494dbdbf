"""The analytic scorer of the embedded set as an extractor and a metric: no file of weights is needed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Better, Metric
from walt_pl.shapes.dataset import parse_caption
from walt_pl.shapes.scorer import read_clip

WORDS = ("colour", "motion", "shape", "texture")
"""Columns of the rows."""
READABLE = 64
"""Rows of pixels from which on a texture can be read. In smaller clips every object reads as plain."""


class ShapesExtractor(Extractor):
    """Read colour, motion, shape and texture of a clip, and compare them with its caption.

    A row has 1 for each word that is right and 0 for each that is wrong. In clips of fewer than 64 rows of pixels, textures are not read
    and count as wrong; the metric `shapes` does not count them.
    """

    kind: ClassVar[str] = "shapes"
    gives: ClassVar[tuple[str, ...]] = ("shapes",)

    def identity(self) -> dict[str, Any]:
        """Return the kind, the words of a row, and the size from which on textures are read."""
        return {"kind": self.kind, "words": list(WORDS), "texture_from": READABLE}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Return the rows `shapes`, float32 [b 4].

        Raises:
            ValueError: a clip has fewer than two frames, or no caption of the embedded set.
        """
        if len(batch.captions) != len(batch):
            raise ValueError(
                f"shapes: wanted the caption of each of {len(batch)} clips, got {len(batch.captions)}; "
                "measure clips with captions, such as a split of an index"
            )
        rows = [self._read(clip, caption) for clip, caption in zip(batch.clips, batch.captions, strict=True)]
        return {"shapes": torch.tensor(rows, dtype=torch.float32).reshape(-1, len(WORDS))}

    def _read(self, clip: Tensor, caption: str) -> list[bool]:
        words, seen = parse_caption(caption), read_clip(clip.permute(3, 0, 1, 2).float().div(127.5).sub(1))
        right = [getattr(seen, name) == getattr(words, name) for name in WORDS]
        return [*right[:-1], right[-1] and clip.shape[1] >= READABLE]


class ShapesScore(Metric):
    """Share of clips with the colour, the motion and the shape of their caption."""

    name: ClassVar[str] = "shapes"
    needs: ClassVar[str] = "shapes"
    real_side: ClassVar[bool] = False
    better: ClassVar[Better] = "max"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._right = 0
        self._clips = 0

    def update(self, rows: Tensor, *, real: bool) -> None:
        """Count the clips, float32 [n 4], of which the first three words are right."""
        assert not real, "real clips have no score"
        self._right += int((rows[:, : WORDS.index("texture")] == 1).all(dim=1).sum())
        self._clips += len(rows)

    def compute(self) -> float:
        """Return the share, 0..1.

        Raises:
            ValueError: there are no clips.
        """
        if not self._clips:
            raise ValueError("shapes: wanted at least one clip, got none")
        return self._right / self._clips
