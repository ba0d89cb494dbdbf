"""Open videos with PyAV, and turn its frames into upright pictures.

PyAV loads native code. So it is imported where it is used: in the worker that reads, never before a fork.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np

from walt_pl.media.containers import DEMUXERS
from walt_pl.media.decode_options import WHITE
from walt_pl.media.max_pixels import MAX_PIXELS, check_pixels
from walt_pl.media.media_file import Media
from walt_pl.media.pixel_aspect import SQUARE, display_size, pixel_aspect
from walt_pl.media.resizing import resize, target
from walt_pl.media.transparency import background_of, check_alpha, frame_to_rgb, has_alpha
from walt_pl.media.types import Frames, MediaError, Size, reason

GROUP = 8
"""Frames that are scaled at once: one by one takes twice as long."""
_MARGIN = 1 << 16
_CLOSED = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file,subfile", "enable_drefs": "0"}
"""Options of FFmpeg with which no file can refer to another file, to a device, or to the network."""


def import_av() -> Any:
    """Import PyAV.

    Raises:
        ImportError: PyAV is not installed. The message says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("PyAV reads and writes video: pip install av (or: make setup)") from error
    return av


@contextmanager
def open_av(media: Media, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Any, Any]]:
    """Open a file and yield PyAV's container and its best video stream.

    Args:
        media: The file or member.
        max_pixels: Largest rows x columns of a frame as it is seen, checked before the first frame is decoded.

    Raises:
        MediaError: The file cannot be opened, its frames are too large, or an error occurs while it is read.
    """
    av = import_av()
    try:
        # No file may refer to another file, or to the network.
        with av.open(media.url, options=_CLOSED) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None or not stream.time_base:
                raise MediaError(f"{media}: no video stream in it that can be decoded")
            stored = stream.codec_context.height, stream.codec_context.width
            check_pixels(media, *display_size(*stored, pixel_aspect(stream)), max_pixels)
            check_alpha(media, stream)
            # Later frames may be larger. FFmpeg counts the margins of its buffers, too.
            stream.codec_context.options = {"max_pixels": str(min(2 * max_pixels + _MARGIN, 2**31 - 1))}
            stream.codec_context.thread_count = 1
            yield container, stream
    # FFmpegError is a subclass of one of these, by kind. NumPy raises ValueError where the size changes on the way. Absurd times and
    # sizes in a damaged header end in the last two.
    except (av.error.FFmpegError, RuntimeError, LookupError, ValueError, OSError, ArithmeticError, MemoryError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{media}: not a video that can be read: {reason(error)}") from error


def check_video(media: Media, max_pixels: int) -> bool:
    """Check that PyAV opens a file, and the size and number of its frames. The answer is remembered for each state of the file.

    Returns:
        True if its frames are opaque and their pixels square.

    Raises:
        MediaError: The file cannot be opened, its frames are too large, or it claims more frames than it has bytes.
    """
    state = media.path.stat()
    rows, columns, frames, is_plain = _claims(media, state.st_size, state.st_mtime_ns)
    check_pixels(media, rows, columns, max_pixels)
    if frames > state.st_size:
        raise MediaError(f"{media}: not a video that can be read: it claims {frames:,} frames in {state.st_size:,} bytes")
    return is_plain


@lru_cache(maxsize=1 << 14)
def _claims(media: Media, size: int, modified: int) -> tuple[int, int, int, bool]:
    """Return rows, columns and number of frames, and whether they are opaque and of square pixels, as PyAV opens the file.

    Size and time of change make a new answer for a new file.
    """
    with open_av(media, max_pixels=sys.maxsize) as (container, stream):
        codec = stream.codec_context
        opaque = background_of(container, stream, WHITE) is None or not has_alpha(codec.format)
        return codec.height, codec.width, stream.frames, opaque and pixel_aspect(stream) == SQUARE


@dataclass(frozen=True)
class Orientation:
    """The transposition and flips that make the pictures of a file upright. Cameras write them beside the frames."""

    transposed: bool = False
    up_down: bool = False
    left_right: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """Return the turn that a frame's display matrix describes.

        The matrix shows a pixel at (x, y) at (a x + c y, b x + d y).
        """
        matrix = next((bytes(data)[:36] for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        return cls(True, b < 0, c < 0) if abs(b) > abs(a) else cls(False, d < 0, a < 0)

    def upright(self, height: int, width: int) -> Size:
        """Return rows and columns of the upright picture. The function is its own inverse."""
        return (width, height) if self.transposed else (height, width)

    def __call__(self, clip: Frames) -> Frames:
        turned = clip.transpose(0, 2, 1, 3) if self.transposed else clip
        turned = turned[:, ::-1] if self.up_down else turned
        return np.ascontiguousarray(turned[:, :, ::-1] if self.left_right else turned)


def pictures(
    frames: Iterable[Any], sizes: Sequence[Size | None], aspect: Fraction = SQUARE, background: tuple[int, int, int] | None = None
) -> list[Frames]:
    """Convert PyAV's frames to an upright clip of each size, with square pixels.

    Args:
        frames: Frames in order.
        sizes: Rows and columns that the pictures must cover; None keeps the size at which the file is seen.
        aspect: Width of a stored pixel divided by its height.
        background: Red, green and blue, 0..255, that show through where a frame is transparent; None ignores alpha.

    Returns:
        One uint8 clip [t h w 3] for each size; [0 0 0 3] where there are no frames.
    """
    from av.video.reformatter import VideoReformatter

    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return [np.zeros((0, 0, 0, 3), np.uint8) for _ in sizes]
    turn = Orientation.of(first)
    lying = [None if size is None else turn.upright(*size) for size in sizes]
    converter = VideoReformatter()  # one for the whole clip: its setup takes as long as a frame
    pictures = (frame_to_rgb(converter, frame, background) for frame in chain([first], frames))
    clips: list[list[Frames]] = [[] for _ in sizes]
    while group := list(islice(pictures, GROUP)):
        together: Frames = np.stack(group)
        for clip, size in zip(clips, lying, strict=True):
            clip.append(resize(together, target(together, size, aspect)))
    return [turn(np.concatenate(clip)) for clip in clips]
