"""Video and image files: the only module that knows decoders and encoders.

decord and PyAV read, PyAV writes. Both load native code, so they are imported where they are used: in the worker that
reads, never before a fork. Measured on decord 0.6.0: after a seek it gives wrong frames, silently, on open GOPs (x265's
default), does not open AV1 and Theora, and drifts where one reader serves several samples. So it reads only the files in
which `probe` found it right everywhere, with a reader of its own for each sample, and from their first frame on: behind a
seek PyAV gives the same frames, and faster, as it decodes none that no other depends on (benchmarks/data.py). PyAV reads all
else, and seeks by time.

Frames are scaled a few at a time while they are decoded, so that no clip is ever held at full size. What that gives is the same for
both decoders: the frame becomes RGB at its own size, by swscale, and is scaled with an antialiased bicubic filter on bytes,
at most 2 of 255 levels beside `transforms.to_size`, which computes in float32. (swscale's own scaling was no faster, and its
colours are others.) Pictures of up to 128 x 128 pixels come back as they are: scaling those in float32 costs nothing. Pixels
are taken as square.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

from walt_pl.data.index import Entry

Frames = NDArray[np.uint8]
Size = tuple[int, int]
"""Rows and columns."""

SMALL = 128 * 128
"""Pixels up to which a picture is not scaled while it is read."""
GROUP = 8
"""Frames that are scaled at once: one by one takes twice as long."""
EARLY = 0.3
"""A frame counts as shown from so much of the mean interval before its time: containers round times, cameras jitter."""


class MediaError(RuntimeError):
    """A file that cannot be read or written. The message starts with its path."""


@dataclass(frozen=True)
class Span:
    """Which frames of a video are taken; of a piece of a file, places count from the piece's own beginning."""

    frames: int
    """How many."""
    fps: float | None = None
    """Frames taken per second of the video, whatever its own rate; None: every `stride`-th frame of the file."""
    stride: int = 1
    """Frames of the file from one taken to the next; only without `fps`."""
    start: float = 0
    """Where the first one lies: without `fps` its number in the order of display, with `fps` a second in which it is shown."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1 or not self.start >= 0 or not (self.fps is None or self.fps > 0):
            raise ValueError(f"a span wants frames and stride of at least 1, fps above 0 and start of at least 0, got {self}")
        if self.fps is None and not float(self.start).is_integer():
            raise ValueError(f"without fps a span starts at a whole frame, got {self.start}")
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"a span has a stride or a rate, got stride {self.stride} and fps {self.fps:g}")


@dataclass(frozen=True)
class Probe:
    """What there is in a file, after all of it has been decoded."""

    frames: int = 0
    """Frames that were really decoded."""
    fps: float = 0.0
    """Frames per second on average, 0 for an image."""
    width: int = 0
    """Columns of pixels, upright."""
    height: int = 0
    """Rows of pixels, upright."""
    duration: float = 0.0
    """Seconds from the first frame to the end of the last one, 0 for an image."""
    variable_rate: bool = False
    """Whether the frames are not evenly spaced in time."""
    decoder: str = ""
    """"decord", "pyav" or "pillow": what reads the file rightly."""
    reason: str = ""
    """Why the file is unusable; empty: it is sound."""
    times: tuple[float, ...] = field(default=(), repr=False)
    """Of a file of variable rate, the second of each frame."""

    def piece(self, begin: float, end: float) -> Probe:
        """The same for a piece of the file: the frames whose times lie from `begin` on and before `end` (0: to the end), in seconds.

        A time up to 0.3 of the mean interval before either counts as there: lists of scenes round. So pieces that follow on each other
        share no frame and lose none. `fps` and `variable_rate` stay those of the file.
        """
        clock = _Clock(float(np.float32(self.fps)), self.variable_rate, begin, end or math.inf)  # float32 as in the index
        if self.reason or not clock.cut:
            return self
        if clock.even:
            first, stop = (int(min(number, self.frames)) for number in clock.numbers())
            return replace(self, frames=stop - first, duration=(stop - first) / self.fps)
        first, stop = np.searchsorted(self.times, np.array([begin, clock.end]) - clock.early).tolist()
        limits = (*self.times, self.times[0] + self.duration)
        return replace(self, frames=stop - first, duration=limits[stop] - limits[first], times=())


def read_clip(entry: Entry, span: Span, size: Size | None = None) -> Frames:
    """The frames of `span`, uint8 [t h w 3], upright.

    Reads files, members of tar shards (`entry.offset`) and pieces of either (`entry.begin`, `entry.end`), never beyond the piece.
    Where the index names decord it reads what begins with the first frame of the file; PyAV reads all else, and files that were
    not examined or have another size than when they were indexed.

    Args:
        entry: A video of the index.
        span: Which frames.
        size: Rows and columns that the pictures must cover; larger ones are scaled down until they just do.

    Raises MediaError, with the path, where the file is missing, broken or too short.
    """
    return read_sizes(entry, span, (size,))[0]


def read_sizes(entry: Entry, span: Span, sizes: Sequence[Size | None]) -> list[Frames]:
    """The same clip at several sizes from one decoding; each is what `read_clip` gives for that size."""
    media = _Media(entry.path, entry.offset, entry.bytes)
    unchanged = media.check() == entry.bytes or entry.offset >= 0
    known = (entry.fps, entry.variable_rate) if entry.decoder and unchanged else (0.0, False)
    clock = _Clock(*known, entry.begin, entry.end or math.inf)
    first = not span.start and not entry.begin
    if entry.decoder == "decord" and unchanged and first and (clips := _read_decord(media, span, clock, sizes)) is not None:
        return clips
    return _read_av(media, span, clock, sizes)


def read_picture(entry: Entry, size: Size | None = None) -> Frames:
    """An image of the index as a one-frame video, uint8 [1 h w 3]; the rest as `read_clip`."""
    return picture_sizes(entry, (size,))[0]


def picture_sizes(entry: Entry, sizes: Sequence[Size | None]) -> list[Frames]:
    """The same image at several sizes from one decoding."""
    picture = _read_pillow(_Media(entry.path, entry.offset, entry.bytes))
    return [_resized(picture, _target(picture, size)) for size in sizes]


def read_video(path: Path, frames: int, start: int = 0) -> Frames:
    """Exactly `frames` frames of any video file from frame `start` on, uint8 [t h w 3], upright.

    Frames are counted in the order of display; with `start` above 0 the place is found by time, at the average frame
    rate of the file.

    Raises MediaError where the file is missing, is no video, or is too short.
    """
    media = _Media(path)
    media.check()
    return _read_av(media, Span(frames, start=start), _Clock(), (None,))[0]


def read_last_frames(path: Path, frames: int, fps: float | None = None) -> Frames:
    """The last `frames` frames of a video, or all of a shorter one, uint8 [t h w 3], upright.

    The whole file is decoded: containers tell their number of frames wrongly, or not at all.

    Args:
        path: The file.
        frames: How many are taken.
        fps: Frames taken per second of the video, whatever its own rate, as a `Span` takes them; None: the frames of the file.

    Raises MediaError where the file is missing or is no video.
    """
    media = _Media(path)
    media.check()
    with _opened_av(media) as (container, stream):
        taken = deque(container.decode(stream), maxlen=frames) if fps is None else _last_by_time(container, stream, frames, fps)
        return _pictures(taken, (None,))[0]


def read_image(path: Path) -> Frames:
    """An image as a one-frame video, uint8 [1 h w 3], turned upright as its EXIF data say.

    Raises MediaError where the file is missing or is no image.
    """
    return _read_pillow(_Media(path))


def covering(height: int, width: int, rows: int, columns: int) -> Size:
    """Size of a picture of `height` x `width` that is scaled until it just covers `rows` x `columns`."""
    # The side that is too short for its share of the rectangle decides.
    wanted, found = (rows, height) if rows * width >= columns * height else (columns, width)
    return max(rows, round(height * wanted / found)), max(columns, round(width * wanted / found))


# Examining


def probe(path: Path, offset: int = -1, length: int | None = None, decord: bool = True) -> Probe:
    """Decodes a whole video and finds the decoder that reads it rightly.

    PyAV is right where it finds the frames again by seeking that it found by decoding from the start; decord where it finds
    as many frames, and the same ones.
    Never raises for what is in the file: `Probe.reason` says what is wrong with it. Native decoders may crash or hang on
    a broken file, so call it in a process of its own, with a time limit.

    Args:
        path: The file, or the tar shard.
        offset: Where the member begins in the shard; -1: the file itself.
        length: Bytes of the member.
        decord: Whether decord is tried (after a crash, call again without).
    """
    media = _Media(path, offset, length or 0)
    try:
        media.check()
        found, keys, marks = _examine(media)
        return replace(found, decoder=_right_decoder(media, found, keys, marks, decord))
    except MediaError as error:
        return Probe(reason=str(error).removeprefix(f"{media}: "))


def probe_picture(path: Path, offset: int = -1, length: int | None = None) -> Probe:
    """The same for an image: decodes it with Pillow."""
    media = _Media(path, offset, length or 0)
    try:
        height, width = _read_pillow(media).shape[1:3]
    except MediaError as error:
        return Probe(reason=str(error).removeprefix(f"{media}: "))
    return Probe(frames=1, width=width, height=height, decoder="pillow")


def _examine(media: _Media) -> tuple[Probe, list[int], list[int]]:
    """What PyAV finds from the first frame to the last, the numbers of the key frames, and a mark of each frame."""
    times: list[Fraction | None] = []
    keys: list[int] = []
    marks: list[int] = []
    size: Size | None = None
    damage = ""
    with _opened_av(media) as (container, stream):
        packets, end = 0, 0.0
        counted = _counted(container, stream)
        for packet in container.demux(stream, *container.streams.audio):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            packets += packet.size > 0
            try:
                frames = [] if damage else packet.decode()
            except (OSError, ValueError) as error:  # FFmpegError is one or the other
                frames, damage = [], f"damaged behind frame {len(times)}: {_reason(error)}"
            for frame in frames:
                upright = _Turn.of(frame).upright(frame.height, frame.width)
                if size not in (None, upright):
                    raise MediaError(f"{media}: the size changes from {size} to {upright} at frame {len(times)}")
                if frame.is_corrupt:
                    damage = damage or f"frame {len(times)} is damaged"
                if frame.key_frame:
                    keys.append(len(times))
                size = upright
                marks.append(_mark(frame))
                times.append(None if frame.pts is None or counted else frame.pts * stream.time_base)
        # The last piece of a file that was cut off is damaged too: first the cause.
        _check_end(media, container, stream, packets, end)
        if damage or size is None:
            raise MediaError(f"{media}: {damage or 'no frame in it'}")
        usual = 1 / (stream.average_rate or 25)
        begin = 0 if counted else _begin(container, stream) * stream.time_base
        last = (frame.duration or 0) * stream.time_base
    seconds = np.array([float(number * usual if time is None else time - begin) for number, time in enumerate(times)])
    interval = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else float(usual)
    if interval <= 0:
        raise MediaError(f"{media}: all frames have the same time")
    uneven = bool(np.abs(seconds - np.arange(len(seconds)) * interval).max() > EARLY * interval)
    # The last frame of an uneven file is as long as it says, as far as that can be believed.
    held = min(float(last) or interval, np.diff(seconds).max()) if uneven and len(seconds) > 1 else interval
    duration = float(seconds[-1] - seconds[0] + held)
    found = Probe(len(seconds), float(1 / interval), size[1], size[0], duration, uneven, times=tuple(seconds.tolist()) if uneven else ())
    return found, keys, marks


def _check_end(media: _Media, container: Any, stream: Any, packets: int, end: float) -> None:
    """Compare what was found with what the file's header says; demuxers take a file that was cut off as a shorter one."""
    formats = container.format.name
    if "mov" in formats and packets < stream.frames:
        raise MediaError(f"{media}: truncated: {packets} of {stream.frames} frames are there")
    # Others guess their length from the size of the file.
    if not any(name in formats for name in ("mov", "matroska", "avi", "asf", "flv")) or not container.duration:
        return
    claimed = container.duration / 1_000_000
    slack = 0.5 if len(container.streams) > 1 else 2.5 / float(stream.average_rate or 25)
    if end < claimed - slack:
        raise MediaError(f"{media}: truncated: it ends after {end:.2f} of {claimed:.2f} seconds")


def _right_decoder(media: _Media, found: Probe, keys: list[int], marks: list[int], decord: bool) -> str:
    """Reads at both ends, and before, on and behind some key frames, as a loader would."""
    chosen = [keys[number] for number in sorted({1, len(keys) // 2, len(keys) - 1}) if 0 < number < len(keys)]
    starts = {0, found.frames - 4, *(key + offset for key in chosen for offset in (-2, 0, 5))}
    clock = _Clock(found.fps, found.variable_rate)
    for start in sorted(start for start in starts if 0 <= start < found.frames):
        span = Span(min(4, found.frames - start), start=start)
        with _opened_av(media) as (container, stream):
            frames = list(_by_number(container, stream, start + np.arange(span.frames), clock))
            if [_mark(frame) for frame in frames] != marks[start : start + span.frames]:
                raise MediaError(f"{media}: its frames cannot be found again by their times; write it anew, e.g. as mp4")
            (ours,) = _pictures(frames, (None,))
        theirs = _read_decord(media, span, clock, (None,), of=found.frames) if decord else None
        # Another colour matrix, or the picture beside it, is more than half a level off.
        decord = theirs is not None and theirs[0].shape == ours.shape and bool(_distance(theirs[0], ours).max() <= 0.5)
    return "decord" if decord else "pyav"


def _distance(a: Frames, b: Frames) -> NDArray[np.float64]:
    return np.abs(a.astype(np.int16) - b).mean((1, 2, 3))


def _mark(frame: Any) -> int:
    """A checksum of the first plane, without what is beyond the width of the picture."""
    plane = frame.planes[0]
    return zlib.crc32(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width].tobytes())


# Writing


def write_video(path: Path, frames: Frames, fps: float, crf: int = 18) -> None:
    """Write uint8 [t h w 3] as H.264 yuv420p in mp4, whole or not at all.

    GOPs are closed, so that every decoder may seek in the file; the same frames give the same bytes.

    Raises ValueError for other arrays or odd sizes (yuv420p halves both), MediaError where the file cannot be written.
    """
    _check_frames(path, frames)
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"{path}: height and width must be even, got {frames.shape[1]} x {frames.shape[2]}")
    _write_whole(path, lambda file: _encode(file, frames, fps, crf))


def write_image(path: Path, frame: Frames) -> None:
    """Write uint8 [h w 3] as JPEG or PNG, by the name's ending, whole or not at all.

    Raises ValueError for other arrays or endings, MediaError where the file cannot be written.
    """
    _check_frames(path, frame[None])
    options: dict[str, dict[str, Any]] = {
        ".png": {"format": "PNG"},
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    }
    if path.suffix not in options:
        raise ValueError(f'{path}: an image file must end in {" or ".join(options)}, got "{path.suffix}"')
    _write_whole(path, lambda file: Image.fromarray(frame).save(file, **options[path.suffix]))


def write_gif(path: Path, frames: Frames, fps: float) -> None:
    """Write uint8 [t h w 3] as a GIF that plays for ever, whole or not at all.

    Raises ValueError for other arrays, MediaError where the file cannot be written.
    """
    _check_frames(path, frames)
    content = gif_bytes(frames, fps)
    _write_whole(path, lambda file: file.write_bytes(content))


def gif_bytes(frames: Frames, fps: float) -> bytes:
    """uint8 [t h w 3] as the bytes of a GIF that plays for ever; GIF keeps time in hundredths of a second."""
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    duration = max(20, round(1000 / fps))  # browsers slow down below 20 ms
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return file.getvalue()


# Decoders


@dataclass(frozen=True)
class _Media:
    """A file, or a member of a tar shard."""

    path: Path
    offset: int = -1
    length: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.offset < 0 else f"{self.path}, member at byte {self.offset}"

    @property
    def url(self) -> str:
        """FFmpeg's name for it."""
        return f"file:{self.path}" if self.offset < 0 else f"subfile,,start,{self.offset},end,{self.offset + self.length},,:{self.path}"

    def check(self) -> int:
        """Size of the file. Raises MediaError where there is nothing to read."""
        if not self.path.is_file():
            raise MediaError(f"{self}: no such file")
        size = self.path.stat().st_size
        if size == 0 or (self.offset >= 0 and self.length <= 0):
            raise MediaError(f"{self}: the file is empty")
        if self.offset >= 0 and self.offset + self.length > size:
            raise MediaError(f"{self}: truncated: the shard ends {self.offset + self.length - size} bytes before the member does")
        return size

    def opened(self) -> io.BytesIO:
        with open(self.path, "rb") as file:
            file.seek(max(0, self.offset))
            return io.BytesIO(file.read(self.length if self.offset >= 0 else -1))


@dataclass(frozen=True)
class _Turn:
    """How the pictures of a file are turned upright; cameras write that beside the frames."""

    transposed: bool = False
    up_down: bool = False
    left_right: bool = False

    @classmethod
    def of(cls, frame: Any) -> _Turn:
        """The display matrix: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
        matrix = next((bytes(data)[:36] for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        return cls(True, b < 0, c < 0) if abs(b) > abs(a) else cls(False, d < 0, a < 0)

    def upright(self, height: int, width: int) -> Size:
        return (width, height) if self.transposed else (height, width)

    def __call__(self, clip: Frames) -> Frames:
        turned = clip.transpose(0, 2, 1, 3) if self.transposed else clip
        turned = turned[:, ::-1] if self.up_down else turned
        return np.ascontiguousarray(turned[:, :, ::-1] if self.left_right else turned)


@dataclass(frozen=True)
class _Clock:
    """What is known of a file's times, from the index, and the piece of it that is read."""

    rate: float = 0.0
    """Frames per second on average; 0: not known."""
    uneven: bool = False
    """Known not to be evenly spaced."""
    begin: float = 0.0
    """Second at which the piece begins."""
    end: float = math.inf
    """Second before which it ends."""

    @property
    def even(self) -> bool:
        """Whether a frame's number tells its time."""
        return self.rate > 0 and not self.uneven

    @property
    def cut(self) -> bool:
        """Whether less than the whole file is read."""
        return self.begin > 0 or self.end < math.inf

    @property
    def early(self) -> float:
        """Seconds by which a frame may lie before a limit and count as there."""
        return EARLY / self.rate

    def numbers(self) -> tuple[int, float]:
        """Of an even file: number of the first frame of the piece, and of the first one behind it."""
        stop = math.inf if self.end == math.inf else math.ceil(self.end * self.rate - EARLY)
        return math.ceil(max(0.0, self.begin * self.rate - EARLY)), stop


def _counts(span: Span) -> NDArray[np.int64]:
    """The frames of a span without `fps`, by number from the beginning of the file or piece."""
    return int(span.start) + span.stride * np.arange(span.frames)


def _numbers(span: Span, clock: _Clock) -> NDArray[np.int64] | None:
    """The frames of a span by number in the file, as far as the piece goes.

    None where that takes a rate that is not known, or that the file does not keep.
    """
    if not clock.even:
        return None if clock.cut or span.fps is not None else _counts(span)
    numbers = _counts(span) if span.fps is None else _sampled(span, span.fps, clock)
    first, stop = clock.numbers()
    numbers = numbers + first
    return numbers[numbers < stop]


def _sampled(span: Span, fps: float, clock: _Clock) -> NDArray[np.int64]:
    return int(span.start * clock.rate + EARLY) + (np.arange(span.frames) * (clock.rate / fps) + EARLY).astype(np.int64)


def _read_decord(media: _Media, span: Span, clock: _Clock, sizes: Sequence[Size | None], of: int | None = None) -> list[Frames] | None:
    """The clip at each size; None where decord is missing, cannot read the file, or finds too few (or not `of`) frames."""
    numbers = _numbers(span, clock)
    try:
        import decord
    except ImportError:  # no wheel for this platform
        return None
    if numbers is None or len(numbers) < span.frames:
        return None
    decord.logging.set_level(decord.logging.QUIET)  # what it cannot read, PyAV reads or explains
    try:
        reader = decord.VideoReader(media.url if media.offset >= 0 else str(media.path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) <= numbers[-1] or len(reader) != (of or len(reader)):
            return None
        once, places = np.unique(numbers, return_inverse=True)
        clip: Frames = reader.get_batch(once).asnumpy()
    # DECORDError is a RuntimeError or a ValueError by release; a damaged index raises IndexError.
    except (decord.DECORDError, RuntimeError, ValueError, IndexError, OSError):
        return None
    if clip.shape[-1] != 3:  # it misreads the rows of some widths
        return None
    return [_resized(clip, _target(clip, size))[places] for size in sizes]


def _read_av(media: _Media, span: Span, clock: _Clock, sizes: Sequence[Size | None]) -> list[Frames]:
    """The clip at each size."""
    numbers = _numbers(span, clock)
    with _opened_av(media) as (container, stream):
        if numbers is not None:
            found = _by_number(container, stream, numbers, clock)
        elif span.fps is None:
            found = _picked((frame for frame, _, _ in _timed(container, stream, clock, clock.begin)), _counts(span))
        else:
            found = _by_time(container, stream, span, span.fps, clock)
        clips = _pictures(found, sizes)
    if len(clips[0]) != span.frames:
        start = f"frame {span.start:g}" if span.fps is None else f"second {span.start:g}"
        piece = f" of the piece from {clock.begin:g} to {clock.end:g} s" if clock.cut else ""
        raise MediaError(f"{media}: found {len(clips[0])} frames from {start} on{piece}, wanted {span.frames}")
    return clips


def _by_number(container: Any, stream: Any, numbers: NDArray[np.int64], clock: _Clock) -> Iterator[Any]:
    """Frames by their numbers in the file (ascending) in the order of display."""
    if not len(numbers):
        return
    first = int(numbers[0])
    rate = clock.rate or float(stream.average_rate or 0)
    number, begins, frames = 0, -np.inf, None
    if _counted(container, stream):
        frames = container.decode(stream)
    elif first and clock.uneven:
        times = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None and not packet.is_discard)
        if first >= len(times):
            return
        number, begins = first, (times[first - 1] + times[first]) / 2
        frames = _from(container, stream, times[first], min(np.diff(times[first - 1 : first + 2])) / 2)
    elif first and rate:
        step = 1 / (rate * float(stream.time_base))
        target = _begin(container, stream) + first * step
        # Half a frame early: times are rounded to the stream's units.
        number, begins = first, target - step / 2
        frames = _from(container, stream, target, step / 2)
    frames = container.decode(stream) if frames is None else frames
    yield from _picked((frame for frame in frames if frame.pts is None or frame.pts >= begins), numbers - number)


def _picked(frames: Iterable[Any], numbers: NDArray[np.int64]) -> Iterator[Any]:
    """Those of some frames that have these numbers (ascending, each as often as it is named), counted from 0."""
    wanted = deque(numbers.tolist())
    for number, frame in enumerate(frames):
        while wanted and wanted[0] == number:
            yield frame
            wanted.popleft()
        if not wanted:
            return


def _by_time(container: Any, stream: Any, span: Span, fps: float, clock: _Clock) -> Iterator[Any]:
    """The frame that is shown at `span.start`, and those shown at equal distances from its time on."""
    taken, origin, target = 0, 0.0, clock.begin + span.start
    for frame, since, until in _shown(_timed(container, stream, clock, target), EARLY * _interval(stream, clock)):
        while target < until:
            if taken == 0:
                origin = since
            yield frame
            taken += 1
            target = origin + taken / fps
            if taken == span.frames:
                return


def _last_by_time(container: Any, stream: Any, count: int, fps: float) -> list[Any]:
    """The last frame, and those shown at equal distances before its time, in the order of display; fewer where the video is shorter."""
    clock, shown = _Clock(), deque[tuple[float, Any]]()
    for frame, time, _ in _timed(container, stream, clock, 0.0):
        shown.append((time, frame))
        while len(shown) > 1 and shown[1][0] <= time - (count - 1) / fps:
            shown.popleft()
    times = np.array([time for time, _ in shown])
    targets = times[-1:] - np.arange(count)[::-1] / fps
    numbers = np.searchsorted(times - EARLY * _interval(stream, clock), targets, side="right") - 1
    return [shown[number][1] for number in numbers if number >= 0]


def _interval(stream: Any, clock: _Clock) -> float:
    """Mean seconds from frame to frame."""
    return 1 / (clock.rate or float(stream.average_rate or 25))


def _timed(container: Any, stream: Any, clock: _Clock, start: float) -> Iterator[tuple[Any, float, float]]:
    """The frames of the piece, with their times and durations in seconds, from one shown at second `start` of the file or before on."""
    interval = _interval(stream, clock)
    early, unit = EARLY * interval, float(stream.time_base)
    if _counted(container, stream):
        timed = ((frame, number * interval, interval) for number, frame in enumerate(container.decode(stream)))
    else:
        begin = _begin(container, stream)
        frames = _from(container, stream, begin + start / unit, early / unit, every=True)
        timed = ((frame, (frame.pts - begin) * unit, (frame.duration or 0) * unit or interval) for frame in frames)
    for frame, time, duration in timed:
        if time >= clock.end - early:
            return
        if time >= clock.begin - early:
            yield frame, time, duration


def _shown(timed: Iterable[tuple[Any, float, float]], early: float) -> Iterator[tuple[Any, float, float]]:
    """From frames with time and duration: each with its time and the one until which it is shown, in seconds."""
    last: tuple[Any, float, float] | None = None
    for frame, since, duration in timed:
        if last is not None:
            yield last[0], last[1], since - early
        last = frame, since, duration
    if last is not None:
        yield last[0], last[1], last[1] + last[2] + early


def _counted(container: Any, stream: Any) -> bool:
    """Whether frames can only be found by counting them from the first one on: what has no times, or loses them when seeking."""
    formats = ("mpeg", "mpegvideo", "h264", "hevc", "m4v")
    return container.format.name in formats or (container.format.name == "avi" and stream.codec_context.has_b_frames)


def _begin(container: Any, stream: Any) -> int:
    """Time of the first frame, in the stream's units."""
    if container.format.name == "avi":  # it has decoding times only, and FFmpeg guesses the others
        container.seek(0, stream=stream)
        first = next(container.decode(stream), None)
        return 0 if first is None or first.pts is None else int(first.pts)
    return int(stream.start_time or 0)


def _from(container: Any, stream: Any, target: float, slack: float, every: bool = False) -> Iterator[Any]:
    """Frames in the order of display, from one at or before `target` (in the stream's units; `slack`: how inexact it is) on.

    Without `every`, those before the target may be left out.
    """
    start = min(0, stream.start_time or 0)  # a transport stream that is sent to its own start time comes out behind it
    margin = 0.0
    while True:
        place = max(start, int(target + slack - margin))
        container.seek(place, stream=stream, backward=True, any_frame=False)
        frames = _decoded(container, stream, -np.inf if every else target - slack)
        key, frame = next(frames, (None, None))
        # Seeking goes by decoding time, which runs ahead of display; and the frames that an open GOP shows before its
        # key frame are lost where it is the first one. Then an earlier key frame is needed.
        reached = frame is not None and None not in (key, frame.pts) and max(key, frame.pts) <= target + slack
        if reached or place == start:
            break
        margin = max(4 * margin, 1 / float(stream.time_base))
    if frame is not None:
        yield frame
        yield from (frame for _, frame in frames)


def _decoded(container: Any, stream: Any, unneeded: float) -> Iterator[tuple[int | None, Any]]:
    """Frames, each with the time of the key frame that decoding began with; none that no other depends on before `unneeded`."""
    key, skipping = None, False
    stream.codec_context.skip_frame = "DEFAULT"
    if stream.codec_context.name not in ("h264", "hevc"):  # libdav1d, for one, cannot change its mind
        unneeded = -np.inf
    for packet in container.demux(stream):
        if key is None and packet.is_keyframe:
            key = packet.pts
        if skipping != (packet.pts is not None and packet.pts < unneeded):
            skipping = not skipping
            stream.codec_context.skip_frame = "NONREF" if skipping else "DEFAULT"
        for frame in packet.decode():
            yield key, frame


@contextmanager
def _opened_av(media: _Media) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream; what goes wrong while they are read is a MediaError."""
    av = _import_av()
    try:
        # No file may send us to another one, or to the network.
        with av.open(media.url, options={"protocol_whitelist": "file,subfile"}) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None or not stream.time_base:
                raise MediaError(f"{media}: no video stream in it that can be decoded")
            stream.codec_context.thread_count = 1
            yield container, stream
    # FFmpegError is one of these by kind. NumPy raises ValueError where the size changes on the way; absurd times and sizes in a
    # damaged header end in the last two.
    except (av.error.FFmpegError, RuntimeError, LookupError, ValueError, OSError, ArithmeticError, MemoryError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{media}: not a video that can be read: {_reason(error)}") from error


def _pictures(frames: Iterable[Any], sizes: Sequence[Size | None]) -> list[Frames]:
    """PyAV's frames as clips of each size, upright; [0 0 0 3] where there are none."""
    from av.video.reformatter import VideoReformatter

    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return [np.zeros((0, 0, 0, 3), np.uint8) for _ in sizes]
    turn = _Turn.of(first)
    lying = [None if size is None else turn.upright(*size) for size in sizes]
    converter = VideoReformatter()  # one for the whole clip: setting it up takes as long as a frame
    pictures = (converter.reformat(frame, format="rgb24", threads=1).to_ndarray() for frame in chain([first], frames))
    clips: list[list[Frames]] = [[] for _ in sizes]
    while group := list(islice(pictures, GROUP)):
        together: Frames = np.stack(group)
        for clip, size in zip(clips, lying, strict=True):
            clip.append(_resized(together, _target(together, size)))
    return [turn(np.concatenate(clip)) for clip in clips]


def _read_pillow(media: _Media) -> Frames:
    media.check()
    try:
        with Image.open(media.opened() if media.offset >= 0 else media.path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))[None]
    # Pillow raises SyntaxError for a broken PNG and ValueError for some broken headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{media}: not an image that can be read: {error}") from error


def _target(clip: Frames, size: Size | None) -> Size:
    """Size to which pictures are scaled down so that they just cover `size`; their own where they are small, or would have to grow."""
    height, width = clip.shape[1:3]
    if size is None or height * width <= SMALL:
        return height, width
    rows, columns = covering(height, width, *size)
    return (rows, columns) if rows <= height and columns <= width else (height, width)


def _resized(clip: Frames, target: Size) -> Frames:
    if clip.shape[1:3] == target:
        return clip
    pictures = torch.from_numpy(clip).permute(0, 3, 1, 2)  # [t c h w], channels last in memory: the fast way for bytes
    resized: Frames = F.interpolate(pictures, size=target, mode="bicubic", antialias=True).permute(0, 2, 3, 1).contiguous().numpy()
    return resized


# Encoders


def _encode(file: Path, frames: Frames, fps: float, crf: int) -> None:
    av = _import_av()
    from av.video.reformatter import VideoReformatter

    with av.open(str(file), mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: the order of work, and with it the bytes, must not depend on the machine.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "open-gop=0:keyint=48:threads=1"}
        converter = VideoReformatter()
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(converter.reformat(picture, format="yuv420p", threads=1)))
        container.mux(stream.encode())


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # FFmpegError is one or the other; a full disk reaches us as one
        raise MediaError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_frames(path: Path, frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"{path}: wanted uint8 frames [t h w 3], got {frames.dtype} {list(frames.shape)}")


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("PyAV reads and writes video: pip install av (or: make setup)") from error
    return av
