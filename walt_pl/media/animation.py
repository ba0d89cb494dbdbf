"""Shrink moving pictures for pages: a GIF, PNG or WebP becomes a small animated WebP, or fails with one sentence."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from walt_pl.media.types import MediaError, reason

FORMATS = ("GIF", "PNG", "WEBP")
"""Formats that are read. Pillow may start programs for others."""
MAX_SIDE = 8192
"""Rows or columns of a moving picture."""
MAX_FRAMES = 512
"""Frames of a moving picture that are counted."""
MAX_VALUES = 1 << 28
"""Rows x columns x frames that are decoded of a moving picture."""
MAX_COMMENT = 65_536
"""Characters of a picture's comment that are kept."""
_FRAME_MS = 125
"""Milliseconds of a frame whose file says nothing."""


@dataclass(frozen=True)
class Animation:
    """Frames of a moving picture."""

    frames: Sequence[Image.Image]
    milliseconds: int
    """Time of each frame."""
    comment: str = ""
    """Text that the file holds beside its pixels."""

    @property
    def size(self) -> tuple[int, int]:
        """Return columns and rows in pixels."""
        return self.frames[0].size


def read_animation(content: bytes, most_frames: int = MAX_FRAMES) -> Animation:
    """Decode a moving picture, or a still one as a single frame.

    Args:
        content: bytes of the file, which may be a stranger's.
        most_frames: frames that are kept; of a longer picture, frames at equal distances are.

    Raises:
        MediaError: it is no such picture, is damaged, or larger than the limits.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if max(width, height) > MAX_SIDE:
                raise MediaError(f"a picture of {height} x {width} pixels, at most {MAX_SIDE:,} a side are read")
            count = min(getattr(picture, "n_frames", 1), MAX_FRAMES, max(1, MAX_VALUES // (width * height)))
            kept = {round(place * (count - 1) / max(1, min(most_frames, count) - 1)) for place in range(min(most_frames, count))}
            frames, comment = [], picture.info.get("comment", b"")
            for number in range(count):  # a GIF is decoded from its first frame on
                picture.seek(number)
                if number in kept:
                    frames.append(picture.convert("RGB"))
            milliseconds = round(picture.info.get("duration") or _FRAME_MS) * count // len(frames)
    except MediaError:
        raise
    except Exception as error:  # for damaged files Pillow's plugins raise errors of many kinds
        raise MediaError(f"not a picture that can be read: {reason(error)}") from error
    text = comment[: 4 * MAX_COMMENT].decode("utf-8", errors="replace")[:MAX_COMMENT] if isinstance(comment, bytes) else ""
    return Animation(frames, min(max(milliseconds, 20), 10_000), text)


def encode_webp(animation: Animation, width: int, quality: int) -> bytes:
    """Return a moving picture as an animated WebP that plays for ever.

    Args:
        animation: its frames.
        width: columns in pixels; a narrower picture keeps its own.
        quality: 0 to 100, of WebP's lossy coding.
    """
    columns, rows = animation.size
    if columns > width:
        rows, columns = max(1, round(rows * width / columns)), width
    frames = [
        frame if frame.size == (columns, rows) else frame.resize((columns, rows), Image.Resampling.LANCZOS) for frame in animation.frames
    ]
    file = io.BytesIO()
    frames[0].save(
        file,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=animation.milliseconds,
        loop=0,
        quality=quality,
        method=2,
    )
    return file.getvalue()
