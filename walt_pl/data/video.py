"""Video and image files: the only module that knows decoders and encoders.

decord reads, PyAV reads what decord cannot, and writes. Both load native code, so they are imported where they are
used: in the worker that reads, never before a fork.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from walt_pl.data.index import Entry

Frames = NDArray[np.uint8]


class MediaError(RuntimeError):
    """A file that cannot be read or written. The message starts with its path."""


@dataclass(frozen=True)
class Span:
    """Which frames of a video are taken."""

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


def read_clip(entry: Entry, span: Span, size: tuple[int, int] | None = None) -> Frames:
    """The frames of `span`, uint8 [t h w 3], upright.

    Reads files and members of tar shards (`entry.offset`), by the decoder that the index names.

    Args:
        entry: A video of the index.
        span: Which frames.
        size: Rows and columns that the pictures must at least cover; larger ones may come back scaled down to that.

    Raises MediaError, with the path, where the file is missing, broken or too short.
    """
    return read_video(entry.path, span.frames, int(span.start))


def read_picture(entry: Entry, size: tuple[int, int] | None = None) -> Frames:
    """An image of the index as a one-frame video, uint8 [1 h w 3]; the rest as `read_clip`."""
    return read_image(entry.path)


def probe(path: Path, offset: int = -1, length: int | None = None, decord: bool = True) -> Probe:
    """Decodes a whole video and finds the decoder that reads it rightly.

    Never raises for what is in the file: `Probe.reason` says what is wrong with it. Native decoders may crash or hang on
    a broken file, so call it in a process of its own, with a time limit.

    Args:
        path: The file, or the tar shard.
        offset: Where the member begins in the shard; -1: the file itself.
        length: Bytes of the member.
        decord: Whether decord is tried (after a crash, call again without).
    """
    raise NotImplementedError


def probe_picture(path: Path, offset: int = -1, length: int | None = None) -> Probe:
    """The same for an image: decodes it with Pillow."""
    raise NotImplementedError


def read_video(path: Path, frames: int, start: int = 0) -> Frames:
    """Exactly `frames` frames of a video from frame `start` on, uint8 [t h w 3].

    Frames are counted in the order of display; with `start` above 0 the place is found by time, at the average frame
    rate of the file. Every call opens its own reader: one that serves several samples drifts.

    Raises MediaError where the file is missing, is no video, or is too short.
    """
    if frames < 1 or start < 0:
        raise ValueError(f"{path}: wanted {frames} frames from frame {start}; frames must be at least 1, start at least 0")
    _check_file(path)
    # Not decord from a later frame on: its seek gives wrong frames, silently, on open GOPs (x265's default).
    clip = _read_decord(path, frames) if start == 0 else None
    if clip is None:
        clip = _read_av(path, frames, start)
    if len(clip) != frames:
        raise MediaError(f"{path}: found {len(clip)} frames from frame {start} on, wanted {frames}")
    return clip


def read_last_frames(path: Path, frames: int) -> Frames:
    """The last `frames` frames of a video, or all of a shorter one, uint8 [t h w 3].

    The whole file is decoded: containers tell their number of frames wrongly, or not at all.

    Raises MediaError where the file is missing or is no video.
    """
    _check_file(path)
    with _opened_av(path) as (container, stream):
        kept = deque(container.decode(stream), maxlen=frames)
        return _stacked([frame.to_ndarray(format="rgb24") for frame in kept])


def read_image(path: Path) -> Frames:
    """An image as a one-frame video, uint8 [1 h w 3], turned upright as its EXIF data say.

    Raises MediaError where the file is missing or is no image.
    """
    _check_file(path)
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))[None]
    # Pillow raises SyntaxError for a broken PNG and ValueError for some broken headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: not an image that can be read: {error}") from error


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


def _read_decord(path: Path, frames: int) -> Frames | None:
    """The first `frames` frames; None where decord is missing, cannot read the file, or finds fewer."""
    try:
        import decord
    except ImportError:  # no wheel for this platform
        return None
    decord.logging.set_level(decord.logging.QUIET)  # what it cannot read, PyAV reads or explains
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) < frames:
            return None
        clip: Frames = reader.get_batch(range(frames)).asnumpy()
    # DECORDError is a RuntimeError or a ValueError by release; a damaged index raises IndexError.
    except (decord.DECORDError, RuntimeError, ValueError, IndexError, OSError):
        return None
    return clip


def _read_av(path: Path, frames: int, start: int) -> Frames:
    clip: list[Frames] = []
    with _opened_av(path) as (container, stream):
        first = _seek(container, stream, start)
        for frame in container.decode(stream):
            if first is not None and frame.pts is not None and frame.pts < first:
                continue
            clip.append(frame.to_ndarray(format="rgb24"))
            if len(clip) == frames:
                break
        return _stacked(clip)


def _stacked(clip: list[Frames]) -> Frames:
    return np.stack(clip) if clip else np.zeros((0, 0, 0, 3), np.uint8)


@contextmanager
def _opened_av(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream; what goes wrong while they are read is a MediaError."""
    av = _import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: no video stream in it")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield container, stream
    # FFmpegError is an OSError or a ValueError by kind; np.stack raises ValueError where the size changes on the way.
    except (av.error.FFmpegError, RuntimeError, IndexError, ValueError, OSError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{path}: not a video that can be read: {_reason(error)}") from error


def _seek(container: Any, stream: Any, start: int) -> Fraction | None:
    """Go to the key frame before frame `start`; returns the time (in the stream's units) from which frames count."""
    if start == 0 or not stream.average_rate:
        return None
    begin = stream.start_time or 0
    step = 1 / (stream.average_rate * stream.time_base)
    # Seeking goes by decoding time, which runs ahead of display by the frames in reordering, 16 at most in H.264 and
    # HEVC. Without this the frames that an open GOP shows before its key frame would be lost.
    container.seek(begin + int(max(0, start - 16) * step), stream=stream, backward=True, any_frame=False)
    # Half a frame early: times are rounded to the stream's units.
    return Fraction(begin + (start - Fraction(1, 2)) * step)


def _encode(file: Path, frames: Frames, fps: float, crf: int) -> None:
    av = _import_av()
    with av.open(str(file), mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: the order of work, and with it the bytes, must not depend on the machine.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "open-gop=0:keyint=48:threads=1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
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


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")


def _check_frames(path: Path, frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"{path}: wanted uint8 frames [t h w 3], got {frames.dtype} {list(frames.shape)}")


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("PyAV reads and writes video: pip install av (or: make setup)") from error
    return av
