"""Scale pictures down while they are read.

Frames are scaled a few at a time while they are decoded, so that no clip is ever held at full size. Both decoders give equal results:
swscale converts the frame to RGB at its own size, and an antialiased bicubic filter on bytes scales it. The result differs by at most
2 of 255 levels from `transforms.to_size`, which computes in float32. swscale's own scaling was no faster, and its colours differ.
Pictures of up to 128 x 128 pixels are returned as they are: scaling those in float32 costs nothing. Pictures whose pixels are not square
are always scaled, once: from the stored pixels to the target, which has square pixels.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F

from walt_pl.media.pixel_aspect import SQUARE, display_size
from walt_pl.media.types import Frames, Size

SMALL = 128 * 128
"""Pixels up to which a picture is not scaled while it is read."""


def cover_size(height: int, width: int, rows: int, columns: int) -> Size:
    """Return the size of a picture of `height` x `width` that is scaled until it just covers `rows` x `columns`."""
    # The side that is shorter in proportion to the rectangle determines the scale.
    wanted, found = (rows, height) if rows * width >= columns * height else (columns, width)
    return max(rows, round(height * wanted / found)), max(columns, round(width * wanted / found))


def target(clip: Frames, size: Size | None, aspect: Fraction = SQUARE) -> Size:
    """Return the size to which pictures are scaled so that they just cover `size`.

    Small pictures (see `SMALL`), and pictures that would have to grow, keep their own size. Pictures whose pixels are not square are
    scaled in any case, so they get their last size at once.

    Args:
        clip: Stored pictures, uint8 [t h w 3].
        size: Rows and columns that the pictures must cover; None is the size at which they are seen.
        aspect: Width of a stored pixel divided by its height.
    """
    height, width = clip.shape[1:3]
    height, width = display_size(height, width, aspect)
    if size is None or (aspect == 1 and height * width <= SMALL):
        return height, width
    rows, columns = cover_size(height, width, *size)
    if aspect != 1:
        return rows, columns
    return (rows, columns) if rows <= height and columns <= width else (height, width)


def resize(clip: Frames, target: Size) -> Frames:
    """Scale a clip, uint8 [t h w 3], to the rows and columns of `target`."""
    if clip.shape[1:3] == target:
        return clip
    pictures = torch.from_numpy(clip).permute(0, 3, 1, 2)  # [t c h w], channels last in memory: the fast layout for bytes
    resized: Frames = F.interpolate(pictures, size=target, mode="bicubic", antialias=True).permute(0, 2, 3, 1).contiguous().numpy()
    return resized
