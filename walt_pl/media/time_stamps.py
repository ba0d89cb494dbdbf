"""Look at the time stamps of a file: whether they lead to its frames, and what to type where they do not."""

import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np

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
        they fall from one key frame to the next.
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
            packets = [(packet.pts, packet.is_keyframe) for packet in shown]
    except MediaError:
        return False, False
    times = sorted(time for time, _ in packets if time is not None)
    keys = [time for time, key in packets if key]
    if len(set(times)) < len(packets) or (np.diff(keys) <= 0).any():
        return False, True
    return is_uneven(np.array(times)), False


def conversion(media: Media, rate: float) -> str:
    """Return the ffmpeg command to type that numbers the frames of a file anew, and keeps each of them.

    `-r` before `-i` ignores the time stamps. `-fps_mode cfr` would believe them, and drop and repeat frames.
    """
    return convert_with(media, f"-r {rate:g}", "-c:v libx264")
