"""I3D of FVD and KVD: logits of Kinetics-400, averaged over time (the torchscript of StyleGAN-V)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
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

    Float32 clips [t h w 3] reach it unchanged: a known figure is of noise that no uint8 clip holds (`known_files.NoiseClips`).

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
        if all(clip.is_floating_point() for clip in batch.clips):
            inside, videos = False, [rearrange(clip, "t h w c -> c t h w") for clip in batch.clips]
        else:
            inside, videos = resize == "inside", [prepare_video(clip, resize) for clip in batch.clips]
        rows = compute_by_shape(videos, lambda x: self._compute(x, inside))
        return {"video_features": check_finite(rows, self.kind)}

    def _compute(self, videos: Tensor, inside: bool) -> Tensor:
        """Return the rows [b d] of videos [b 3 t h w]: of any size in 0..255 with `inside`, else as the network takes them."""
        x = videos.to(self.device, torch.float32)
        with exact_arithmetic(self.device):
            return call_torchscript(self.network, self.kind, x, rescale=inside, resize=inside, return_features=True)
