"""Frame ranges of a video, and the arithmetic from frames to seconds and back."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EARLY = 0.3
"""Share of the mean interval by which a frame counts as shown before its time: containers round times, cameras jitter."""


@dataclass(frozen=True)
class FrameRange:
    """The frames of a video that are read. In a piece of a file, `start` counts from the beginning of the piece."""

    frames: int
    """Number of frames."""
    fps: float | None = None
    """Frames read per second of the video, whatever its own rate; None: every `stride`-th frame of the file."""
    stride: int = 1
    """Distance between frames that are read, in frames of the file; only without `fps`."""
    start: float = 0
    """Position of the first frame. Without `fps`: its number in the order of display. With `fps`: a second in which it is shown."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1 or not self.start >= 0 or not (self.fps is None or self.fps > 0):
            raise ValueError(f"a span wants frames and stride of at least 1, fps above 0 and start of at least 0, got {self}")
        if self.fps is None and not float(self.start).is_integer():
            raise ValueError(f"without fps a span starts at a whole frame, got {self.start}")
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"a span has a stride or a rate, got stride {self.stride} and fps {self.fps:g}")


@dataclass(frozen=True)
class Clock:
    """The times of a file, as the index knows them, and the piece of it that is read."""

    rate: float = 0.0
    """Frames per second on average; 0: not known."""
    uneven: bool = False
    """True if the frames are known not to be evenly spaced in time."""
    begin: float = 0.0
    """Second at which the piece begins."""
    end: float = math.inf
    """Second before which the piece ends."""
    counted: bool = False
    """True if frames can only be found by counting them from the first one on, because the times of the file are flawed."""

    @property
    def even(self) -> bool:
        """Return whether the number of a frame determines its time."""
        return self.rate > 0 and not self.uneven

    @property
    def cut(self) -> bool:
        """Return whether less than the whole file is read."""
        return self.begin > 0 or self.end < math.inf

    @property
    def early(self) -> float:
        """Return the seconds by which a frame may lie before a limit and still count as reaching it."""
        return EARLY / self.rate

    def numbers(self) -> tuple[int, float]:
        """Return the number of the first frame of the piece, and of the first frame after it. The file must be even."""
        stop = math.inf if self.end == math.inf else math.ceil(self.end * self.rate - EARLY)
        return math.ceil(max(0.0, self.begin * self.rate - EARLY)), stop


def is_uneven(times: NDArray[np.float64] | NDArray[np.int64]) -> bool:
    """Return whether a frame is more than 0.3 of the mean interval from its place on an even grid. The times are ascending."""
    interval = (times[-1] - times[0]) / max(1, len(times) - 1) if len(times) else 0
    return bool((np.abs(times - (times[:1] + np.arange(len(times)) * interval)) > EARLY * interval).any())


def counts(frame_range: FrameRange) -> NDArray[np.int64]:
    """Return the frames of a range without `fps`, by number from the beginning of the file or piece."""
    return int(frame_range.start) + frame_range.stride * np.arange(frame_range.frames)


def frame_numbers(frame_range: FrameRange, clock: Clock) -> NDArray[np.int64] | None:
    """Return the frames of a range by number in the file, up to the end of the piece.

    Returns:
        int64 numbers, ascending. None where they depend on a rate that is not known, or that the file does not keep.
    """
    if not clock.even:
        return None if clock.cut or frame_range.fps is not None else counts(frame_range)
    numbers = counts(frame_range) if frame_range.fps is None else _sample(frame_range, frame_range.fps, clock)
    first, stop = clock.numbers()
    numbers = numbers + first
    return numbers[numbers < stop]


def _sample(frame_range: FrameRange, fps: float, clock: Clock) -> NDArray[np.int64]:
    return int(frame_range.start * clock.rate + EARLY) + (np.arange(frame_range.frames) * (clock.rate / fps) + EARLY).astype(np.int64)
