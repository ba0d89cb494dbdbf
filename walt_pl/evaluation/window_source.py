"""Windows of held-out videos, read as in training: by the rate of the training, whatever the rates of the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from walt_pl.data.index import Index
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.transforms import ClipTransform
from walt_pl.evaluation.clip_reading import read_ranges
from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips

MOST_WINDOWS = 8
"""Most windows of one video. Windows of one video resemble each other: further ones tell little."""
SPACING = 8
"""A window begins at least 1/8 of its length after the one before."""


class WindowSource(ClipSource):
    """Windows of the videos of a split: from the first frame to the last possible one, evenly spaced.

    Quarantined videos, and those shorter than a window, are left out. A draw of a window always starts at its frame 0.

    Args:
        index: path of the index, as typed.
        split: name of the split.
        clip_transform: frames and rate of the training.
        videos: most videos; of more, as many are drawn.
        seed: of this draw.

    Raises:
        ValueError: the index cannot be read, has nothing in this split, or no video is long enough.
    """

    def __init__(self, index: str, split: str, clip_transform: ClipTransform, videos: int, seed: int = 0) -> None:
        self.text = index
        self.clip_transform = clip_transform
        found = Index(index, split)
        self.split = split
        self.sha256 = found.sha256
        self._entries = found.videos
        self._quarantine = Quarantine.beside(index)
        needed = clip_transform.needs(*(self._entries.column(name) for name in ("frames", "fps", "duration")))
        is_long_enough = self._entries.column("frames") >= needed
        is_long_enough[self._quarantine.positions(self._entries)] = False
        usable = np.flatnonzero(is_long_enough)
        if not len(usable):
            raise ValueError(
                f'evaluate: no video of split "{split}" of {index} has {clip_transform.frames} frames at the rate of the training: index '
                "longer ones, or name another split with --split"
            )
        chosen = np.sort(np.random.default_rng(seed).permutation(usable)[:videos])
        spare = (self._entries.column("frames") - needed)[chosen].astype(np.int64)
        gap = np.maximum(1, needed[chosen] // SPACING)
        counts = np.minimum(MOST_WINDOWS, 1 + spare // gap).astype(np.int64)
        self.windows = [
            ClipDraw(int(video), int(start))
            for video, most, count in zip(chosen, spare, counts, strict=True)
            for start in np.rint(np.linspace(0, most, count))
        ]
        """Position of each window's video in the split, and its first frame in frames of the file."""
        self.left_out_videos = len(self._entries) - len(usable)

    def __len__(self) -> int:
        return len(self.windows)

    def facts(self) -> dict[str, Any]:
        """Return path, split and hashes of the index, and the rule of the windows."""
        quarantine = {"quarantine_sha256": self._quarantine.sha256} if len(self._quarantine) else {}
        rule = {"fps": self.clip_transform.fps, "stride": self.clip_transform.stride, "windows": [list(draw) for draw in self.windows]}
        return {"kind": "windows", "path": self.text, "split": self.split, "index_sha256": self.sha256, **quarantine, **rule}

    def lengths(self) -> Sequence[int]:
        """Return the frames of a window for each."""
        return [self.clip_transform.frames] * len(self)

    def names(self) -> Sequence[str]:
        """Return path, and first frame, of each window."""
        places = self._entries.places(np.array([draw.item for draw in self.windows]))
        return [f"{place}, window from frame {draw.start}" for place, draw in zip(places, self.windows, strict=True)]

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Read the first frames of windows.

        Raises:
            ValueError: every n-th frame of a window is wanted: it has the rate of the training already.
        """
        if stride != 1:
            raise ValueError(f"evaluate: windows have the rate of the training, and a stride of {stride} is asked for")
        windows = [self.windows[draw.item] for draw in draws]
        entries = [self._entries[window.item] for window in windows]
        transform = replace(self.clip_transform, frames=frames)
        ranges = [transform.frame_range(entry, window.start) for entry, window in zip(entries, windows, strict=True)]
        clips, failures = read_ranges(entries, ranges, size, transform.decoding)
        return ReadClips(clips, [entry.caption for entry in entries], [entry.label for entry in entries], failures=failures)
