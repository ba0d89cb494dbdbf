"""I3D of FVD and KVD: logits of Kinetics-400, averaged over time (the torchscript of StyleGAN-V)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings, check_finite, compute_by_shape, exact_arithmetic
from walt_pl.metrics.extractors.torchscript import call_torchscript, load_torchscript
from walt_pl.metrics.extractors.weight_file import read_weight_file
from walt_pl.metrics.resize import prepare_video

LEAST_FRAMES = 9
"""Frames below which I3D's pooling over time has nothing left."""


class I3D(ConfiguredExtractor):
    """Rows of the I3D torchscript, or of any torchscript that takes the same call.

    Raises:
        ValueError: the file is missing, has another hash, or is no torchscript.
    """

    kind = "i3d"
    gives = ("video_features",)
    takes_file = True
    of_images = False

    def __init__(self, settings: ExtractorSettings) -> None:
        super().__init__(settings)
        file = read_weight_file(self.kind, settings, is_code=True)
        self.network = load_torchscript(file, self.device)
        self._file = file.identity()

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._file, "resize": self.settings.protocol.resize}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        for clip in batch.clips:
            if len(clip) < LEAST_FRAMES:
                raise ValueError(f"i3d wants clips of at least {LEAST_FRAMES} frames, got {len(clip)}; set --frames")
        resize = self.settings.protocol.resize
        inside = resize == "inside"
        videos = [prepare_video(clip, resize) for clip in batch.clips]
        rows = compute_by_shape(videos, lambda x: self.compute(x, rescale=inside, resize=inside))
        return {"video_features": check_finite(rows, self.kind)}

    def compute(self, videos: Tensor, *, rescale: bool, resize: bool) -> Tensor:
        """Return the rows [b d] of videos [b 3 t h w] as the torchscript computes them.

        Args:
            videos: in 0..255 with `rescale`, else in -1..1; 224 x 224 without `resize`.
            rescale: whether the torchscript maps 0..255 to -1..1.
            resize: whether the torchscript resizes to 224 x 224.
        """
        with exact_arithmetic(self.device):
            rows = call_torchscript(
                self.network, self.kind, videos.to(self.device, torch.float32), rescale=rescale, resize=resize, return_features=True
            )
        return rows
