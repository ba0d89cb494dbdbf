"""Decode a whole file, and find the decoder that reads it correctly."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.decord_reader import read_decord
from walt_pl.media.frame_traits import FrameTraits
from walt_pl.media.max_pixels import MAX_PIXELS
from walt_pl.media.media_file import Media
from walt_pl.media.pillow_reader import read_pillow
from walt_pl.media.pixel_aspect import display_size, pixel_aspect
from walt_pl.media.progress import ReportingContainer
from walt_pl.media.pyav import Orientation, open_av, pictures
from walt_pl.media.seeking import begin_time, by_number, is_counted, usual_rate
from walt_pl.media.spans import EARLY, Clock, FrameRange
from walt_pl.media.time_stamps import conversion
from walt_pl.media.types import COUNTED, Frames, MediaError, Size, UnorderedTimesError, reason


@dataclass(frozen=True)
class Probe:
    """The properties of a file, after all of it has been decoded."""

    frames: int = 0
    """Frames that were really decoded."""
    fps: float = 0.0
    """Frames per second on average, 0 for an image."""
    width: int = 0
    """Columns of pixels, upright, as if pixels were square."""
    height: int = 0
    """Rows of pixels, upright, as if pixels were square."""
    duration: float = 0.0
    """Seconds from the first frame to the end of the last one, 0 for an image."""
    variable_rate: bool = False
    """True if the frames are not evenly spaced in time."""
    decoder: str = ""
    """The decoder that reads the file correctly: "decord", "pyav", `COUNTED` or "pillow"."""
    reason: str = ""
    """Reason why the file is unusable; empty: it is sound."""
    interlaced: bool = False
    """True if most frames are marked as interlaced."""
    hdr: bool = False
    """True if the colour transfer is PQ or HLG."""
    times: tuple[float, ...] = field(default=(), repr=False)
    """Second of each frame, for a file of variable rate only."""

    def piece(self, begin: float, end: float) -> Probe:
        """Return the probe of a piece of the file: of the frames whose times lie from `begin` on and before `end`.

        A time up to 0.3 of the mean interval before either limit counts as reaching it, because lists of scenes round. So pieces that
        follow each other share no frame and lose none. `fps` and `variable_rate` stay those of the file.

        Args:
            begin: Second at which the piece begins.
            end: Second before which the piece ends; 0: at the end of the file.
        """
        clock = Clock(float(np.float32(self.fps)), self.variable_rate, begin, end or math.inf)  # float32 as in the index
        if self.reason or not clock.cut:
            return self
        if clock.even:
            first, stop = (int(min(number, self.frames)) for number in clock.numbers())
            return replace(self, frames=stop - first, duration=(stop - first) / self.fps)
        first, stop = np.searchsorted(self.times, np.array([begin, clock.end]) - clock.early).tolist()
        limits = (*self.times, self.times[0] + self.duration)
        return replace(self, frames=stop - first, duration=limits[stop] - limits[first], times=())


def probe(
    path: Path,
    offset: int = -1,
    length: int | None = None,
    decord: bool = True,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[], None] = lambda: None,
) -> Probe:
    """Decode a whole video and find the decoder that reads it correctly.

    PyAV is right where seeking finds the frames that decoding from the start found. decord is right where it finds equally many and
    equal frames. A file whose times are flawed is read by the order of its frames, at the average rate of its container.
    This function never raises for the content of the file: `Probe.reason` says what is wrong with it. Native decoders may crash or hang
    on a broken file, so call it in a process of its own, with a time limit.

    Args:
        path: The file, or the tar shard.
        offset: Byte of the shard at which the member begins; -1: the file itself.
        length: Bytes of the member.
        decord: Whether decord is tried (after a crash, call again without).
        max_pixels: Largest rows x columns of a frame.
        progress: Is called for each packet and each frame that is found.
    """
    media = Media(path, offset, length or 0)
    try:
        media.check()
        found, keys, marks = _examine(media, max_pixels, progress)
        try:
            return replace(found, decoder=_right_decoder(media, found, keys, marks, decord, max_pixels, progress))
        except UnorderedTimesError:
            found = replace(found, decoder=COUNTED, duration=found.frames / found.fps, variable_rate=False, times=())
            return replace(found, decoder=_right_decoder(media, found, keys, marks, False, max_pixels, progress))
    except MediaError as error:
        return Probe(reason=str(error).removeprefix(f"{media}: "))


def probe_picture(path: Path, offset: int = -1, length: int | None = None, max_pixels: int = MAX_PIXELS) -> Probe:
    """Decode a whole image with Pillow. The arguments are those of `probe`."""
    media = Media(path, offset, length or 0)
    try:
        height, width = read_pillow(media, DecodeOptions(max_pixels)).shape[1:3]
    except MediaError as error:
        return Probe(reason=str(error).removeprefix(f"{media}: "))
    return Probe(frames=1, width=width, height=height, decoder="pillow")


def _examine(media: Media, max_pixels: int, progress: Callable[[], None]) -> tuple[Probe, list[int], list[int]]:
    """Decode a file with PyAV from the first frame to the last.

    Returns:
        The probe, the numbers of the key frames, and a checksum of each frame.
    """
    times: list[Fraction | None] = []
    keys: list[int] = []
    marks: list[int] = []
    size: Size | None = None
    damage = ""
    with open_av(media, max_pixels) as (opened, stream):
        container = ReportingContainer(opened, media, progress)
        packets, end = 0, 0.0
        counted, aspect, traits = is_counted(container, stream), pixel_aspect(stream), FrameTraits(container, stream)
        for packet in container.demux(stream, *container.streams.audio):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            packets += packet.size > 0
            try:
                frames = [] if damage else packet.decode()
            except (OSError, ValueError) as error:  # FFmpegError is one or the other
                frames, damage = [], f"damaged behind frame {len(times)}: {reason(error)}"
            for frame in frames:
                upright = Orientation.of(frame).upright(*display_size(frame.height, frame.width, aspect))
                if size not in (None, upright):
                    raise MediaError(f"{media}: the size changes from {size} to {upright} at frame {len(times)}")
                if change := traits.note(frame):
                    raise MediaError(f"{media}: {change}; cut it there")
                if frame.is_corrupt:
                    damage = damage or f"frame {len(times)} is damaged"
                if frame.key_frame:
                    keys.append(len(times))
                size = upright
                marks.append(_mark(frame))
                times.append(None if frame.pts is None or counted else frame.pts * stream.time_base)
        # The end of a truncated file is damaged too. So report the truncation first: it is the cause.
        check_end(media, container, stream, packets, end)
        if damage or size is None:
            raise MediaError(f"{media}: {damage or 'no frame in it'}")
        flawed = not counted and _are_flawed(media, times)
        usual = 1 / usual_rate(stream)
        begin = 0 if counted else begin_time(container, stream) * stream.time_base
        last = (frame.duration or 0) * stream.time_base
    seconds = np.array([float(number * usual if flawed or time is None else time - begin) for number, time in enumerate(times)])
    interval = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else float(usual)
    uneven = bool(np.abs(seconds - np.arange(len(seconds)) * interval).max() > EARLY * interval)
    # The last frame of an uneven file has the duration in the file, but at most the longest interval: headers may be wrong.
    held = min(float(last) or interval, np.diff(seconds).max()) if uneven and len(seconds) > 1 else interval
    duration = float(seconds[-1] - seconds[0] + held)
    measured = (len(seconds), float(1 / interval), size[1], size[0], duration, uneven, COUNTED if flawed else "")
    found = Probe(*measured, interlaced=traits.interlaced, hdr=traits.hdr, times=tuple(seconds.tolist()) if uneven else ())
    return found, keys, marks


def _are_flawed(media: Media, times: list[Fraction | None]) -> bool:
    """Return whether times of frames are missing, or do not increase in the order of display.

    Raises:
        MediaError: All frames have the same time. Then the file has no rate.
    """
    if len(times) > 1 and None not in times and len(set(times)) == 1:
        raise MediaError(f"{media}: all frames have the same time; {conversion(media, 25)} (25 is its frames a second)")
    return any(early is None or late is None or late <= early for early, late in pairwise(times))


def check_end(media: Media, container: Any, stream: Any, packets: int, end: float) -> None:
    """Compare the decoded length with the length in the file's header. Demuxers take a truncated file for a shorter one.

    Raises:
        MediaError: The file is truncated.
    """
    formats = container.format.name
    if "mov" in formats and packets < stream.frames:
        raise MediaError(f"{media}: truncated: {packets} of {stream.frames} frames are there")
    # Other formats guess their length from the size of the file.
    if not any(name in formats for name in ("mov", "matroska", "avi", "asf", "flv")) or not container.duration:
        return
    claimed = container.duration / 1_000_000
    slack = 0.5 if len(container.streams) > 1 else 2.5 / float(stream.average_rate or 25)
    if end < claimed - slack:
        raise MediaError(f"{media}: truncated: it ends after {end:.2f} of {claimed:.2f} seconds")


def _right_decoder(
    media: Media, found: Probe, keys: list[int], marks: list[int], decord: bool, max_pixels: int, progress: Callable[[], None]
) -> str:
    """Return the decoder that reads the file correctly.

    The test reads at both ends, and before, on and after some key frames, as a loader would.

    Raises:
        UnorderedTimesError: PyAV does not find the frames again by their times.
        MediaError: PyAV does not find them by counting, either.
    """
    chosen = [keys[number] for number in sorted({1, len(keys) // 2, len(keys) - 1}) if 0 < number < len(keys)]
    starts = {0, found.frames - 4, *(key + offset for key in chosen for offset in (-2, 0, 5))}
    clock = Clock(found.fps, found.variable_rate, counted=found.decoder == COUNTED)
    for start in sorted(start for start in starts if 0 <= start < found.frames):
        frame_range = FrameRange(min(4, found.frames - start), start=start)
        with open_av(media, max_pixels) as (opened, stream):
            container = ReportingContainer(opened, media, progress)
            frames = list(by_number(container, stream, start + np.arange(frame_range.frames), clock))
            if [_mark(frame) for frame in frames] != marks[start : start + frame_range.frames]:
                if not clock.counted:
                    raise UnorderedTimesError
                raise MediaError(f"{media}: its frames differ each time that it is decoded; {conversion(media, found.fps)}")
            (ours,) = pictures(frames, (None,), pixel_aspect(stream))  # decord reads no video with alpha
        decord = decord and not clock.counted
        theirs = read_decord(media, frame_range, clock, (None,), max_pixels, found.frames) if decord else None
        # Another colour matrix, or a neighbouring frame, differs by more than half a level.
        decord = theirs is not None and theirs[0].shape == ours.shape and bool(_distance(theirs[0], ours).max() <= 0.5)
    return COUNTED if clock.counted else "decord" if decord else "pyav"


def _distance(a: Frames, b: Frames) -> NDArray[np.float64]:
    return np.abs(a.astype(np.int16) - b).mean((1, 2, 3))


def _mark(frame: Any) -> int:
    """Return a checksum of the first plane, without the bytes beyond the width of the picture, and of the palette."""
    plane = frame.planes[0]
    picture = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width].tobytes()
    return zlib.crc32(bytes(frame.planes[1]) if frame.format.has_palette else b"", zlib.crc32(picture))
