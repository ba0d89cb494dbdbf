"""Read the files in which `probe` found decord right everywhere.

decord loads native code. So it is imported where it is used: in the worker that reads, never before a fork.
"""

from collections.abc import Sequence

import numpy as np

from walt_pl.media.containers import is_open_to_decord
from walt_pl.media.max_pixels import MAX_PIXELS
from walt_pl.media.media_file import Media
from walt_pl.media.pyav import check_video
from walt_pl.media.resizing import resize, target
from walt_pl.media.spans import Clock, FrameRange, frame_numbers
from walt_pl.media.types import Frames, Size


def read_decord(
    media: Media,
    frame_range: FrameRange,
    clock: Clock,
    sizes: Sequence[Size | None],
    max_pixels: int = MAX_PIXELS,
    of: int | None = None,
) -> list[Frames] | None:
    """Return the clip at each size, or None where decord cannot read it.

    Args:
        media: The file or member.
        frame_range: Frames to read.
        clock: Times of the file.
        sizes: Rows and columns that the pictures must cover; None keeps the size of the file.
        max_pixels: Largest rows x columns of a frame.
        of: Number of frames that the file must have, if known.

    Returns:
        One uint8 clip [t h w 3] for each size. None where decord is missing, cannot read the file, or finds too few (or not `of`) frames.
        None also where frames are transparent or their pixels are not square: decord knows neither, and an index of an older version may
        name it for such files.

    Raises:
        MediaError: PyAV cannot open the file, or its frames have more than `max_pixels`. An index that names decord is no proof.
    """
    numbers = frame_numbers(frame_range, clock)
    try:
        import decord
    except ImportError:  # no wheel for this platform
        return None
    if numbers is None or len(numbers) < frame_range.frames:
        return None
    if not is_open_to_decord(media):
        return None
    if not check_video(media, max_pixels):
        return None
    decord.logging.set_level(decord.logging.QUIET)  # PyAV reads the files that decord cannot read, or explains the error
    try:
        reader = decord.VideoReader(media.url, ctx=decord.cpu(0), num_threads=1)
        if len(reader) <= numbers[-1] or len(reader) != (of or len(reader)):
            return None
        once, places = np.unique(numbers, return_inverse=True)
        clip: Frames = reader.get_batch(once).asnumpy()
    # DECORDError is a RuntimeError or a ValueError, depending on the release. A damaged index raises IndexError.
    except (decord.DECORDError, RuntimeError, ValueError, IndexError, OSError):
        return None
    if clip.shape[-1] != 3:  # it misreads the rows of some widths
        return None
    return [resize(clip, target(clip, size))[places] for size in sizes]
