"""Scale pictures down while they are read.

Frames are scaled a few at a time while they are decoded, so that no clip is ever held at full size. Both decoders give equal results:
the frame becomes RGB at its own size, by swscale, and is scaled with an antialiased bicubic filter on bytes, at most 2 of 255 levels
beside `transforms.to_size`, which computes in float32. (swscale's own scaling was no faster, and its colours are others.) Pictures of
up to 128 x 128 pixels come back as they are: scaling those in float32 costs nothing. Pixels are taken as square.
"""

import torch
import torch.nn.functional as F

from walt_pl.media.types import Frames, Size

SMALL = 128 * 128
"""Pixels up to which a picture is not scaled while it is read."""


def covering(height: int, width: int, rows: int, columns: int) -> Size:
    """Size of a picture of `height` x `width` that is scaled until it just covers `rows` x `columns`."""
    # The side that is too short for its share of the rectangle decides.
    wanted, found = (rows, height) if rows * width >= columns * height else (columns, width)
    return max(rows, round(height * wanted / found)), max(columns, round(width * wanted / found))


def target(clip: Frames, size: Size | None) -> Size:
    """Size to which pictures are scaled down so that they just cover `size`; their own where they are small, or would have to grow."""
    height, width = clip.shape[1:3]
    if size is None or height * width <= SMALL:
        return height, width
    rows, columns = covering(height, width, *size)
    return (rows, columns) if rows <= height and columns <= width else (height, width)


def resized(clip: Frames, target: Size) -> Frames:
    if clip.shape[1:3] == target:
        return clip
    pictures = torch.from_numpy(clip).permute(0, 3, 1, 2)  # [t c h w], channels last in memory: the fast way for bytes
    resized: Frames = F.interpolate(pictures, size=target, mode="bicubic", antialias=True).permute(0, 2, 3, 1).contiguous().numpy()
    return resized
