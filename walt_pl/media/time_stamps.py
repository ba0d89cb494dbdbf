"""Look at the time stamps of a file: whether they lead to its frames, and what to type where they do not."""

import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from walt_pl.media.conversion import convert_with
from walt_pl.media.media_file import Media
from walt_pl.media.pyav import open_av
from walt_pl.media.spans import Clock, is_uneven
from walt_pl.media.types import MediaError


def look_at_times(media: Media, clock: Clock) -> Clock:
    """Return the clock of a file that nobody examined, with the properties that its time stamps show.

    The whole file is read, but nothing is decoded. The answer is remembered for each state of the file. A file that cannot be read
    has sound times: whoever reads it next will say what is wrong with it.

    Returns:
        The clock, `uneven` where the times are not evenly spaced. It is `counted` where times are missing, where two are equal, or where
        a group of pictures begins before all earlier ones have ended. Without B-frames, each picture is a group.
    """
    state = media.path.stat()
    uneven, counted = _look(media, state.st_size, state.st_mtime_ns)
    return replace(clock, uneven=uneven, counted=counted)


@lru_cache(maxsize=1 << 14)
def _look(media: Media, size: int, modified: int) -> tuple[bool, bool]:
    """Return whether the times of a file are uneven, and whether they are flawed. Size and time of change name the state of the file."""
    try:
        with open_av(media, max_pixels=sys.maxsize) as (container, stream):
            shown = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
            in_order = not stream.codec_context.has_b_frames
            packets = [(packet.pts, in_order or packet.is_keyframe) for packet in shown]
    except MediaError:
        return False, False
    times = np.array([time for time, _ in packets if time is not None])
    if len(np.unique(times)) < len(packets) or _overlap(times, np.array([begins for _, begins in packets])):
        return False, True
    return is_uneven(np.sort(times)), False


def _overlap(times: NDArray[np.int64], begins: NDArray[np.bool_]) -> bool:
    """Return whether a group of pictures has a time that is not above all times of the groups before it in the file.

    Leading pictures of an open group lie before its key frame, and still above the groups before it.

    Args:
        times: Times of the packets in the order of the file.
        begins: Whether each begins a group: key frames do, and every frame of a video that is stored in the order of display.
    """
    if not len(times):
        return False
    starts = np.unique([0, *np.flatnonzero(begins)])
    first, last = np.minimum.reduceat(times, starts), np.maximum.reduceat(times, starts)
    return bool((first[1:] <= np.maximum.accumulate(last)[:-1]).any())


def conversion(media: Media, rate: float) -> str:
    """Return the ffmpeg command to type that numbers the frames of a file anew, and keeps each of them.

    `-r` before `-i` ignores the time stamps. `-fps_mode cfr` would believe them, and drop and repeat frames.
    """
    return convert_with(media, f"-r {rate:g}", "-c:v libx264")
