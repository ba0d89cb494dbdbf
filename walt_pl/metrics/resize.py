"""Resize clips to the input of video networks. Published protocols differ in it, and so do their figures (docs/EVALUATION.md)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from walt_pl.metrics.protocol import Resize

SIDE = 224
"""Rows and columns that I3D and VideoMAE were trained with."""


def prepare_video(clip: Tensor, resize: Resize, side: int = SIDE) -> Tensor:
    """Return a clip as a video network takes it.

    Args:
        clip: uint8 [t h w 3].
        resize: `tf1` is bilinear without half-pixel centres (`tf.compat.v1.image.resize_bilinear`); `half_pixel` is bilinear with them,
            without antialias; `short_side` scales the short side in this way and crops the centre; `inside` leaves it to the network.
        side: rows and columns of the network's input.

    Returns:
        float32 [3 t side side] in -1..1; for `inside` [3 t h w] in 0..255.
    """
    frames = rearrange(clip, "t h w c -> t c h w").float()
    if resize != "inside":
        frames = _resize(frames, resize, side) / 127.5 - 1
    return rearrange(frames, "t c h w -> c t h w").contiguous()


def _resize(frames: Tensor, resize: Resize, side: int) -> Tensor:
    if resize == "tf1":
        # Imported here: the package imports torchvision, and the other protocols do without it.
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(frames, size=(side, side), align_corners=False)
        return resized
    if resize == "half_pixel":
        return F.interpolate(frames, size=(side, side), mode="bilinear", align_corners=False)
    # StyleGAN-V and VideoGPT: the long side is rounded up.
    height, width = frames.shape[2:]
    rows, columns = (side, math.ceil(width * side / height)) if height < width else (math.ceil(height * side / width), side)
    frames = F.interpolate(frames, size=(rows, columns), mode="bilinear", align_corners=False)
    top, left = (rows - side) // 2, (columns - side) // 2
    return frames[:, :, top : top + side, left : left + side]
