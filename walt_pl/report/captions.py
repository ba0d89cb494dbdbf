"""Read the captions of the clips of a moving picture from its comment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from walt_pl.media.animation import read_animation
from walt_pl.media.types import MediaError
from walt_pl.report.blocks import shorten

MOST_CAPTIONS = 64
"""Captions of a moving picture that are listed."""
MOST_ALT_CAPTIONS = 4
"""Captions in the text that stands for a picture."""


def read_captions(load: Callable[[], bytes]) -> list[str]:
    """Return the captions of a picture, one for each clip; none where it has no list of them or cannot be read."""
    try:
        comment = read_animation(load(), most_frames=1).comment
    except (MediaError, ValueError, OSError):
        return []  # the reason is told where the picture would be
    return [shorten(line) for line in comment.split("\n") if line][:MOST_CAPTIONS]


def describe_captions(captions: Sequence[str]) -> str:
    """Return the first captions for the text that stands for a picture; empty for none."""
    more = "; and others" if len(captions) > MOST_ALT_CAPTIONS else ""
    return f": {'; '.join(captions[:MOST_ALT_CAPTIONS])}{more}" if captions else ""
