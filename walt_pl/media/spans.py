"""Spans of a video, and the arithmetic from frames to seconds and back."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EARLY = 0.3
"""A frame counts as shown from so much of the mean interval before its time: containers round times, cameras jitter."""


@dataclass(frozen=True)
class FrameRange:
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
class Clock:
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


def counts(frame_range: FrameRange) -> NDArray[np.int64]:
    """The frames of a span without `fps`, by number from the beginning of the file or piece."""
    return int(frame_range.start) + frame_range.stride * np.arange(frame_range.frames)


def frame_numbers(frame_range: FrameRange, clock: Clock) -> NDArray[np.int64] | None:
    """The frames of a span by number in the file, as far as the piece goes.

    None where that takes a rate that is not known, or that the file does not keep.
    """
    if not clock.even:
        return None if clock.cut or frame_range.fps is not None else counts(frame_range)
    numbers = counts(frame_range) if frame_range.fps is None else _sampled(frame_range, frame_range.fps, clock)
    first, stop = clock.numbers()
    numbers = numbers + first
    return numbers[numbers < stop]


def _sampled(frame_range: FrameRange, fps: float, clock: Clock) -> NDArray[np.int64]:
    return int(frame_range.start * clock.rate + EARLY) + (np.arange(frame_range.frames) * (clock.rate / fps) + EARLY).astype(np.int64)
