"""Read clips and images: of an index, or of any file.

Measured on decord 0.6.0: after a seek it gives wrong frames, silently, on open GOPs (x265's default). It does not open AV1 and
Theora, and it drifts where one reader serves several samples. So it reads only the files in which `probe` found it right everywhere.
Each sample has a reader of its own, which reads from the first frame of the file on. After a seek PyAV gives equal frames, and
faster, as it skips frames that no other depends on (benchmarks/data.py). PyAV reads all other files, and seeks by time.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from walt_pl.media.decode_options import WHITE, DecodeOptions
from walt_pl.media.decord_reader import read_decord
from walt_pl.media.deinterlacing import Neighbours, deinterlace, with_neighbours
from walt_pl.media.media_file import Media
from walt_pl.media.pillow_reader import read_pillow
from walt_pl.media.pixel_aspect import pixel_aspect
from walt_pl.media.pyav import open_av, pictures
from walt_pl.media.resizing import resize, target
from walt_pl.media.seeking import by_number, by_number_with_neighbours, by_time, last_by_time, pick_frames, with_times
from walt_pl.media.spans import Clock, FrameRange, counts, frame_numbers
from walt_pl.media.time_stamps import look_at_times
from walt_pl.media.transparency import background_of
from walt_pl.media.types import COUNTED, Frames, MediaEntry, MediaError, Size, UnorderedTimesError

Result = TypeVar("Result")


def read_clip(entry: MediaEntry, frame_range: FrameRange, size: Size | None = None) -> Frames:
    """Return the frames of `frame_range`, uint8 [t h w 3], upright and with square pixels.

    The entry is a file, a member of a tar shard (`entry.offset`) or a piece of either (`entry.begin`, `entry.end`). No frame beyond
    the piece is read. With decord in the index, decord reads the ranges that begin with the first frame of the file. PyAV reads all
    others. It also reads files that were not examined, or whose size has changed since they were indexed.

    Args:
        entry: A video of the index.
        frame_range: Frames to read.
        size: Rows and columns that the pictures must cover. Larger pictures are scaled down until they just cover them.

    Raises:
        MediaError: The file is missing, broken or too short. The message starts with the path.
    """
    return read_sizes(entry, frame_range, (size,))[0]


def read_sizes(
    entry: MediaEntry, frame_range: FrameRange, sizes: Sequence[Size | None], options: DecodeOptions = DecodeOptions()
) -> list[Frames]:
    """Return one clip at several sizes from one decoding. Each equals the result of `read_clip` for that size.

    Raises:
        MediaError: As in `read_clip`, or a frame has more than `options.max_pixels` rows x columns.
    """
    media = Media(entry.path, entry.offset, entry.bytes)
    unchanged = media.check() == entry.bytes or entry.offset >= 0
    known = (entry.fps, entry.variable_rate) if entry.decoder and unchanged else (0.0, False)
    clock = Clock(*known, entry.begin, entry.end or math.inf, counted=entry.decoder == COUNTED and unchanged)
    first = not frame_range.start and not entry.begin
    to_decord = entry.decoder == "decord" and unchanged and first and not options.deinterlace
    if to_decord and (clips := read_decord(media, frame_range, clock, sizes, options.max_pixels)) is not None:
        return clips
    return _read_av(media, frame_range, clock, sizes, options)


def read_picture(entry: MediaEntry, size: Size | None = None) -> Frames:
    """Return an image of the index as a one-frame video, uint8 [1 h w 3].

    Args:
        entry: An image of the index.
        size: As in `read_clip`.

    Raises:
        MediaError: The file is missing or broken. The message starts with the path.
    """
    return picture_sizes(entry, (size,))[0]


def picture_sizes(entry: MediaEntry, sizes: Sequence[Size | None], options: DecodeOptions = DecodeOptions()) -> list[Frames]:
    """Return one image at several sizes from one decoding.

    Raises:
        MediaError: As in `read_picture`, or the image has more than `options.max_pixels` rows x columns.
    """
    picture = read_pillow(Media(entry.path, entry.offset, entry.bytes), options)
    return [resize(picture, target(picture, size)) for size in sizes]


def read_video(path: Path, frames: int, start: int = 0) -> Frames:
    """Return exactly `frames` frames of any video file from frame `start` on, uint8 [t h w 3], upright.

    Frames are counted in the order of display. With `start` above 0 the position is found by time.
    If the times of the file are flawed, it is decoded from the first frame on.

    Raises:
        MediaError: The file is missing, is no video, or is too short.
    """
    media = Media(path)
    media.check()
    return _read_av(media, FrameRange(frames, start=start), Clock(), (None,))[0]


def read_last_frames(path: Path, frames: int, fps: float | None = None, background: tuple[int, int, int] = WHITE) -> Frames:
    """Return the last `frames` frames of a video, or all frames of a shorter one, uint8 [t h w 3], upright.

    The whole file is decoded: containers give their number of frames wrongly, or not at all. Interlaced frames are deinterlaced: videos
    are continued from these frames, and models make progressive ones.

    Args:
        path: The file.
        frames: Number of frames.
        fps: Frames read per second of the video, whatever its own rate, as in a `FrameRange`; None: the frames of the file.
        background: Red, green and blue, 0..255, that show through where a frame is transparent.

    Raises:
        MediaError: The file is missing or is no video.
    """
    media = Media(path)
    media.check()

    def read(clock: Clock) -> Frames:
        with open_av(media) as (container, stream):
            if fps is None:
                decoded = ((frame, None) for frame in container.decode(stream))
                taken: Sequence[Neighbours] = [window for window, _ in deque(with_neighbours(decoded), maxlen=frames)]
            else:
                taken = last_by_time(container, stream, frames, fps, clock)
            return pictures(map(deinterlace, taken), (None,), pixel_aspect(stream), background_of(container, stream, background))[0]

    return _count_if_unordered(read, Clock())


def read_image(path: Path, options: DecodeOptions = DecodeOptions()) -> Frames:
    """Return an image as a one-frame video, uint8 [1 h w 3], turned upright as its EXIF data say.

    Raises:
        MediaError: The file is missing or is no image of one frame.
    """
    return read_pillow(Media(path), options)


def _count_if_unordered(read: Callable[[Clock], Result], clock: Clock) -> Result:
    """Return what `read` gives by the times of the file, or else by counting its frames from the first one on."""
    try:
        return read(clock)
    except UnorderedTimesError:
        return read(replace(clock, counted=True))


def _read_av(
    media: Media, frame_range: FrameRange, clock: Clock, sizes: Sequence[Size | None], options: DecodeOptions = DecodeOptions()
) -> list[Frames]:
    """Return the clip at each size, read with PyAV."""
    # Of a file that nobody examined, time stamps are looked at before a seek believes them.
    if (frame_range.start or clock.begin) and not clock.rate and not clock.counted:
        clock = look_at_times(media, clock)
    return _count_if_unordered(lambda clock: _decode(media, frame_range, clock, sizes, options), clock)


def _decode(media: Media, frame_range: FrameRange, clock: Clock, sizes: Sequence[Size | None], options: DecodeOptions) -> list[Frames]:
    numbers, neighbours = frame_numbers(frame_range, clock), options.deinterlace
    with open_av(media, options.max_pixels) as (container, stream):
        if numbers is not None:
            pick = by_number_with_neighbours if neighbours else by_number
            found: Iterator[Any] = pick(container, stream, numbers, clock)
        elif frame_range.fps is None:
            timed = with_times(container, stream, clock, clock.begin, neighbours)
            found = pick_frames((frame for frame, _, _ in timed), counts(frame_range))
        else:
            found = by_time(container, stream, frame_range, frame_range.fps, clock, neighbours)
        shown = map(deinterlace, found) if neighbours else found
        clips = pictures(shown, sizes, pixel_aspect(stream), background_of(container, stream, options.background))
    if len(clips[0]) != frame_range.frames:
        start = f"frame {frame_range.start:g}" if frame_range.fps is None else f"second {frame_range.start:g}"
        piece = f" of the piece from {clock.begin:g} to {clock.end:g} s" if clock.cut else ""
        raise MediaError(f"{media}: found {len(clips[0])} frames from {start} on{piece}, wanted {frame_range.frames}")
    return clips
