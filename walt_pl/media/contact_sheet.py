"""Many clips in one picture."""

import math
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from walt_pl.media.types import Frames

_LINE = 14
"""Height in pixels of a line of Pillow's built-in font with its margin."""


def to_uint8(clips: Tensor) -> Frames:
    """Convert pixels [... c t h w] in -1..1 to uint8 [... t h w c]."""
    pixels = ((clips.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return pixels.movedim(-4, -1).numpy().astype(np.uint8)


def captioned_grid(clips: Tensor, captions: Sequence[str], columns: int | None = None, side: int = 128) -> Frames:
    """Arrange clips side by side, enlarged, with their captions below.

    Args:
        clips: [b 3 t h w] in -1..1.
        captions: Caption of each clip.
        columns: Clips of a row; about the square root of b if not set.
        side: Least width of an enlarged clip in pixels.

    Returns:
        uint8 [t H W 3].
    """
    b, _, t, h, w = clips.shape
    zoom = max(1, math.ceil(side / w))
    columns = columns or math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    cells = np.zeros((rows * columns, t, h * zoom + _LINE * 2, w * zoom, 3), np.uint8)
    for cell, clip, caption in zip(cells, to_uint8(clips), captions, strict=False):
        cell[:, : h * zoom] = clip.repeat(zoom, axis=1).repeat(zoom, axis=2)
        cell[:, h * zoom :] = _caption(caption, w * zoom)
    return rearrange(cells, "(r c) t h w x -> t (r h) (c w) x", c=columns)


def contact_sheet(clips: Tensor, captions: Sequence[str], shown: int = 5, columns: int = 2, side: int = 1) -> Frames:
    """Return one picture of clips, in which each clip is a row of frames, a few clips abreast.

    Args:
        clips: [b 3 t h w] in -1..1.
        captions: Caption of each clip.
        shown: Frames of each clip, from first to last.
        columns: Clips abreast.
        side: Least width of an enlarged row of frames in pixels.

    Returns:
        uint8 [h w 3].
    """
    t = clips.shape[2]
    picked = clips[:, :, [round(i * (t - 1) / (shown - 1)) for i in range(shown)]]
    strips = rearrange(picked, "b c t h w -> b c 1 h (t w)")
    sheet: Frames = captioned_grid(strips, captions, columns=min(columns, len(clips)), side=side)[0]
    return sheet


def _caption(text: str, width: int) -> Frames:
    """Return text on at most two lines that fit the width, uint8 [h w 3]."""
    image = Image.new("RGB", (width, _LINE * 2))
    draw = ImageDraw.Draw(image)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    draw.multiline_text((1, 1), "\n".join(lines[:2]), fill=(220, 220, 220), spacing=1)
    return np.asarray(image)
