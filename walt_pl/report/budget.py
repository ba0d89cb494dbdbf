"""Encode the page's moving pictures so that they fit into the bytes that are left for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from walt_pl.media.animation import Animation, encode_webp, read_animation
from walt_pl.media.types import MediaError
from walt_pl.report.blocks import MovingPicture, shorten


class Level(NamedTuple):
    """One way to encode a picture."""

    width: int
    quality: int
    frames: int


LEVELS = (Level(640, 75, 64), Level(640, 50, 32), Level(480, 45, 24), Level(320, 35, 16), Level(240, 25, 8))
"""Ways to encode a picture, from the largest to the smallest."""


def base64_bytes(size: int) -> int:
    """Return the bytes of base64 text of so many bytes."""
    return -(-size // 3) * 4


def encode_pictures(pictures: Sequence[MovingPicture], room: int) -> list[str]:
    """Encode each picture as large as its equal share of the room allows; small ones leave more for the others.

    Args:
        pictures: the pictures; each gets its bytes, or the reason why it is left out.
        room: bytes of base64 text for all of them.

    Returns:
        A sentence for each picture that cannot be read.
    """
    problems = []
    for number, picture in enumerate(pictures):
        share = room // (len(pictures) - number)
        try:
            content = picture.load()
            room -= _encode(picture, content, share)
        except (MediaError, ValueError, OSError) as error:
            picture.left_out = f"This picture cannot be read ({shorten(error)})."
            problems.append(f"{picture.caption}: {shorten(error)}.")
    return problems


def _encode(picture: MovingPicture, content: bytes, share: int) -> int:
    """Encode a picture at the largest level that fits its share, and return the bytes of its base64 text.

    Raises:
        MediaError: it is no picture that can be read.
    """
    whole = read_animation(content)
    for level in LEVELS:
        every = -(-len(whole.frames) // level.frames)
        animation = Animation(whole.frames[::every], whole.milliseconds * every)
        moving = encode_webp(animation, level.width, level.quality)
        still = encode_webp(Animation(animation.frames[:1], 1000), level.width, level.quality)
        size = base64_bytes(len(moving)) + base64_bytes(len(still))
        if size <= share:
            picture.moving, picture.still = moving, still
            width, height = animation.size
            scale = min(1.0, level.width / width)
            picture.size = (round(width * scale), round(height * scale))
            return size
    picture.left_out = "This picture is left out to keep the page small."
    return 0
