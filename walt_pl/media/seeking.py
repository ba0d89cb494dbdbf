"""Find frames in a video that PyAV has opened: by number, or by time."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walt_pl.media.deinterlacing import Neighbours, with_neighbours
from walt_pl.media.spans import EARLY, Clock, FrameRange
from walt_pl.media.types import UnorderedTimesError

_PALETTE_IN_EACH_FRAME = ("png", "apng", "bmp", "gif", "tiff")
"""Decoders that find a palette in each frame."""


def by_number(container: Any, stream: Any, numbers: NDArray[np.int64], clock: Clock) -> Iterator[Any]:
    """Yield frames by their numbers in the file (ascending), in the order of display."""
    if not len(numbers):
        return
    first = int(numbers[0])
    rate = clock.rate or float(stream.average_rate or 0)
    number, begins, frames = 0, -np.inf, None
    if clock.counted or is_counted(container, stream) or loses_palette(stream):
        frames = container.decode(stream)
    elif first and clock.uneven:
        times = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None and not packet.is_discard)
        if first >= len(times):
            return
        number, begins = first, (times[first - 1] + times[first]) / 2
        frames = _from(container, stream, times[first], min(np.diff(times[first - 1 : first + 2])) / 2)
    elif first and rate:
        step = 1 / (rate * float(stream.time_base))
        target = begin_time(container, stream) + first * step
        # Begin half a frame early: times are rounded to the stream's units.
        number, begins = first, target - step / 2
        frames = _from(container, stream, target, step / 2)
    frames = container.decode(stream) if frames is None else frames
    yield from pick_frames((frame for frame in frames if frame.pts is None or frame.pts >= begins), numbers - number)


def pick_frames(frames: Iterable[Any], numbers: NDArray[np.int64]) -> Iterator[Any]:
    """Yield those of some frames that have these numbers, counted from 0.

    Args:
        frames: Frames in order.
        numbers: Numbers of frames, ascending. A frame comes as often as its number is named.
    """
    wanted = deque(numbers.tolist())
    for number, frame in enumerate(frames):
        while wanted and wanted[0] == number:
            yield frame
            wanted.popleft()
        if not wanted:
            return


def by_number_with_neighbours(container: Any, stream: Any, numbers: NDArray[np.int64], clock: Clock) -> Iterator[Neighbours]:
    """Yield frames by their numbers as `by_number` does, each between its neighbours. No neighbour lies outside of the piece."""
    first, stop = clock.numbers() if clock.cut else (0, np.inf)
    needed = np.unique(np.concatenate([numbers - 1, numbers, numbers + 1]))
    needed = needed[(needed >= first) & (needed < stop)]
    for window, number in with_neighbours(zip(by_number(container, stream, needed, clock), needed.tolist(), strict=False)):
        yield from [window] * int((numbers == number).sum())


def by_time(container: Any, stream: Any, frame_range: FrameRange, fps: float, clock: Clock, neighbours: bool = False) -> Iterator[Any]:
    """Yield the frame that is shown at `frame_range.start`, and those shown at equal distances after its time.

    With `neighbours`, each comes between its neighbours.
    """
    taken, origin, target = 0, 0.0, clock.begin + frame_range.start
    for frame, since, until in _shown(with_times(container, stream, clock, target, neighbours), EARLY * _interval(stream, clock)):
        while target < until:
            if taken == 0:
                origin = since
            yield frame
            taken += 1
            target = origin + taken / fps
            if taken == frame_range.frames:
                return


def last_by_time(container: Any, stream: Any, count: int, fps: float, clock: Clock) -> list[Neighbours]:
    """Return the last frame, and those shown at equal distances before its time, each between its neighbours.

    Returns:
        At most `count` frames in the order of display; fewer where the video is shorter.
    """
    shown = deque[tuple[float, Any]]()
    for frame, time, _ in with_times(container, stream, clock, 0.0, neighbours=True):
        shown.append((time, frame))
        while len(shown) > 1 and shown[1][0] <= time - (count - 1) / fps:
            shown.popleft()
    times = np.array([time for time, _ in shown])
    targets = times[-1:] - np.arange(count)[::-1] / fps
    numbers = np.searchsorted(times - EARLY * _interval(stream, clock), targets, side="right") - 1
    return [shown[number][1] for number in numbers if number >= 0]


def _interval(stream: Any, clock: Clock) -> float:
    """Return the mean seconds from frame to frame."""
    return 1 / (clock.rate or float(usual_rate(stream)))


def usual_rate(stream: Any) -> Fraction:
    """Return the frames per second that the container, or else its codec, claims; 25 where neither does."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def with_times(container: Any, stream: Any, clock: Clock, start: float, neighbours: bool = False) -> Iterator[tuple[Any, float, float]]:
    """Yield the frames of the piece with their times and durations, in seconds.

    The first frame is one that is shown at second `start` of the file, or an earlier one. With `neighbours`, each comes between its
    neighbours. A progressive frame needs none, so the first one may lack the one before it.
    """
    early = EARLY * _interval(stream, clock)
    # A piece begins up to `early` before its second. Seeking takes a key frame up to `early` after its target.
    timed = _timed_from(container, stream, clock, start - 2 * early if clock.begin and start <= clock.begin else start)
    if neighbours:
        begun = list(islice(timed, 2))
        if _lacks_neighbour(begun, max(0.0, clock.begin - early), start - early):
            before = begun[0][1] - float(stream.time_base) / 2
            begun, timed = [], _timed_from(container, stream, clock, before - early)
        timed = chain(begun, timed)
    inside = (shown for shown in takewhile(lambda shown: shown[1] < clock.end - early, timed) if shown[1] >= clock.begin - early)
    if not neighbours:
        yield from inside
        return
    tagged = ((frame, (time, duration)) for frame, time, duration in inside)
    yield from ((window, time, duration) for window, (time, duration) in with_neighbours(tagged))


def _lacks_neighbour(begun: Sequence[tuple[Any, float, float]], begin: float, start: float) -> bool:
    """Return whether a frame before the first one that was decoded is needed.

    Args:
        begun: The first two frames that were decoded.
        begin: Second from which on frames belong to the piece.
        start: Second before which no frame is needed, unless as a neighbour.
    """
    if not begun or not begun[0][0].interlaced_frame or begun[0][1] <= begin:
        return False
    return len(begun) == 1 or begun[1][1] > start


def _timed_from(container: Any, stream: Any, clock: Clock, start: float) -> Iterator[tuple[Any, float, float]]:
    """Yield frames as `with_times` does, but of the whole file."""
    interval, unit = _interval(stream, clock), float(stream.time_base)
    if clock.counted or is_counted(container, stream):
        yield from ((frame, number * interval, interval) for number, frame in enumerate(container.decode(stream)))
        return
    begin = begin_time(container, stream)
    for frame in _from(container, stream, begin + start / unit, EARLY * interval / unit, every=True):
        yield frame, (frame.pts - begin) * unit, (frame.duration or 0) * unit or interval


def _shown(timed: Iterable[tuple[Any, float, float]], early: float) -> Iterator[tuple[Any, float, float]]:
    """Yield each frame with its time and the time until which it is shown, in seconds.

    Args:
        timed: Frames with their times and durations in seconds.
        early: Seconds by which the next frame counts as shown before its time.
    """
    last: tuple[Any, float, float] | None = None
    for frame, since, duration in timed:
        if last is not None:
            yield last[0], last[1], since - early
        last = frame, since, duration
    if last is not None:
        yield last[0], last[1], last[1] + last[2] + early


def is_counted(container: Any, stream: Any) -> bool:
    """Return whether frames can only be found by counting them from the first one on.

    This holds for streams without times, and for streams that lose their times when seeking.
    """
    formats = ("mpeg", "mpegvideo", "h264", "hevc", "m4v")
    return container.format.name in formats or (container.format.name == "avi" and stream.codec_context.has_b_frames)


def loses_palette(stream: Any) -> bool:
    """Return whether a seek loses the colours, so that decoding must begin with the first packet of a newly opened file.

    Containers give a palette, and its changes, once: beside a packet. Decoders then keep it.
    """
    codec = stream.codec_context
    return codec.format is not None and bool(codec.format.has_palette) and codec.name not in _PALETTE_IN_EACH_FRAME


def begin_time(container: Any, stream: Any) -> int:
    """Return the time of the first frame, in the stream's units."""
    if container.format.name == "avi" and not loses_palette(stream):  # it has decoding times only, and FFmpeg guesses the display times
        container.seek(0, stream=stream)
        first = next(container.decode(stream), None)
        return 0 if first is None or first.pts is None else int(first.pts)
    return int(stream.start_time or 0)


def _from(container: Any, stream: Any, target: float, slack: float, every: bool = False) -> Iterator[Any]:
    """Yield frames in the order of display, from one at or before a target time on.

    Args:
        container: PyAV's container.
        stream: Its video stream.
        target: Target time, in the stream's units.
        slack: Uncertainty of the target, in the stream's units.
        every: Yield every frame from the first one on. Otherwise, frames before the target may be left out.
    """
    if loses_palette(stream):
        yield from (frame for _, frame in _decode(container, stream, -np.inf))
        return
    start = min(0, stream.start_time or 0)  # a transport stream that seeks to its own start time lands after it
    margin = 0.0
    while True:
        place = max(start, int(target + slack - margin))
        container.seek(place, stream=stream, backward=True, any_frame=False)
        frames = _decode(container, stream, -np.inf if every else target - slack)
        key, frame = next(frames, (None, None))
        # Seeking uses decoding time, which runs ahead of display. And if decoding begins with an open GOP, the frames that are
        # shown before its key frame are lost. Then an earlier key frame is needed.
        reached = frame is not None and None not in (key, frame.pts) and max(key, frame.pts) <= target + slack
        if reached or place == start:
            break
        margin = max(4 * margin, 1 / float(stream.time_base))
    if frame is not None:
        yield frame
        yield from (frame for _, frame in frames)


def _decode(container: Any, stream: Any, unneeded: float) -> Iterator[tuple[int | None, Any]]:
    """Yield frames, each with the time of the key frame that decoding began with.

    Frames before `unneeded` that no other frame depends on are left out.

    Raises:
        UnorderedTimesError: A frame has no time, or none later than that of the frame before it.
    """
    key, skipping, last = None, False, -np.inf
    stream.codec_context.skip_frame = "DEFAULT"
    if stream.codec_context.name not in ("h264", "hevc"):  # others, such as libdav1d, cannot change skip_frame while decoding
        unneeded = -np.inf
    for packet in container.demux(stream):
        if key is None and packet.is_keyframe:
            key = packet.pts
        if skipping != (packet.pts is not None and packet.pts < unneeded):
            skipping = not skipping
            stream.codec_context.skip_frame = "NONREF" if skipping else "DEFAULT"
        for frame in packet.decode():
            if frame.pts is None or frame.pts <= last:
                raise UnorderedTimesError
            last = frame.pts
            yield key, frame
