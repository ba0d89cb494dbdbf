"""Figures of videos longer than a clip: 29 and 53 frames, which are 2 and 4 segments.

Objects of the set move by a third of the frame in 17 frames, or grow to two thirds of its width. The ideal path then leaves the frame,
and no training clip shows that. So continuity is measured, and no path beyond the seam: the first new frame of a segment should have the
position and size to which the 5 frames before it lead. Centres move in every second frame, and in the first new frames they stand still.
An object that is within the frame before a seam is therefore within it after the seam, too, whatever its motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from walt_pl.data.index import Index
from walt_pl.paper.figure import Figure
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.common import SHOWN, average, count_cases, extend_path, fit_outlines, open_cascade
from walt_pl.sampling.cascade import SamplingConfig
from walt_pl.shapes.dataset import parse_caption
from walt_pl.shapes.evaluation import default_steps, request_captions
from walt_pl.shapes.outline import Outline
from walt_pl.shapes.scorer import read_clip

STAGE = "base_long_video"
CLIPS = 64
"""Validation captions, of one video each."""
SEGMENTS = (2, 4)
"""Segments of the lengths that are measured, 29 and 53 frames. A shorter video of a seed is equal to the first frames of a longer one."""
BATCH = 16
"""Videos that are sampled at once."""
VISIBLE = 0.5
"""Overlap with the ideal shape above which an object counts as visible in a frame."""


@dataclass(frozen=True)
class Seams:
    """Frames at which segments meet."""

    clip: int
    """Frames of a segment."""
    overlap: int
    """Frames that a segment takes from the one before."""

    @property
    def first_new(self) -> list[int]:
        """First new frame of each segment but the first one."""
        return [self.end(segment) for segment in range(1, max(SEGMENTS))]

    def end(self, segments: int) -> int:
        """Return the frames of a video of so many segments."""
        return self.clip + (segments - 1) * (self.clip - self.overlap)

    def new_frames(self, segments: int) -> list[slice]:
        """Return the new frames of each of so many segments."""
        return [slice(0 if number == 0 else self.end(number), self.end(number + 1)) for number in range(segments)]


def measure_long_video(run: Path, index: Path, seed: int, short: bool) -> Measured:
    """Measure videos of 53 frames of validation captions, and their first 29 frames.

    - `seam_N`: distance in pixels of the centre in the first new frame after seam N from the line of the 5 frames before.
    - `seam_size_N`: distance in pixels of the radius there from its line.
    - `inside`, `inside_size`: these distances within the first segment, 6 frames before its end, where there is no seam.
    - `shape_F`, `colour_F`: shares of videos of F frames that have the caption's word in every segment.
    - `visible_F`: share of videos whose object is visible in all F frames. Seams are measured where it is visible on both sides.
    - `motion_2`: share of videos in which the caption's motion goes on in the 12 new frames of the second segment.

    Args:
        run: folder with the stages vae and base_long_video.
        index: of the embedded set.
        seed: of the first sample's noise; each further sample adds 1.
        short: take an eighth of the videos.
    """
    cascade = open_cascade(run, [STAGE])
    seams = Seams(cascade.clip_frames, cascade.overlap)
    captions = [entry.caption for entry in Index(index, "val").videos[: count_cases(CLIPS, short)]]
    request, sampling = request_captions(captions, seed), SamplingConfig(default_steps(cascade))
    parts = [request.part(start, BATCH) for start in range(0, len(request), BATCH)]
    videos = torch.cat([cascade.video(part, sampling, seams.end(max(SEGMENTS))) for part in parts])
    outlines = fit_outlines(videos)
    figures = _measure_seams(outlines, seams)
    for segments in SEGMENTS:
        frames = seams.end(segments)
        figures |= _measure_words(videos, captions, seams.new_frames(segments), frames)
        figures[f"visible_{frames}"] = average(bool((outline.overlap[:frames] > VISIBLE).all()) for outline in outlines)
    second = seams.new_frames(2)[1]
    figures["motion_2"] = average(
        read_clip(video[:, second]).motion == parse_caption(caption).motion for video, caption in zip(videos, captions, strict=True)
    )
    return Measured(figures, videos[:SHOWN], captions[:SHOWN])


def _measure_seams(outlines: Sequence[Outline], seams: Seams) -> dict[str, Figure]:
    """Return the distances of position and size from their lines; a figure needs two videos in which the object is visible there."""
    places = {"inside": seams.clip - 6} | {f"seam_{number}": frame for number, frame in enumerate(seams.first_new, start=1)}
    figures: dict[str, Figure] = {}
    for name, frame in places.items():
        before = slice(frame - seams.overlap, frame)
        visible = [outline for outline in outlines if (outline.overlap[before.start : frame + 1] > VISIBLE).all()]
        if len(visible) < 2:
            continue
        size = name.replace("seam", "seam_size") if name != "inside" else "inside_size"
        figures[name] = average(
            float(np.linalg.norm(outline.centre[frame] - extend_path(outline.centre, before, frame + 1)[frame])) for outline in visible
        )
        figures[size] = average(abs(outline.radius[frame] - _extend_radius(outline, before, frame)) for outline in visible)
    return figures


def _extend_radius(outline: Outline, known: slice, frame: int) -> float:
    """Return the radius of a frame on the straight line fitted to known frames, in pixels."""
    times = np.arange(known.start, known.stop)
    slope, start = np.polyfit(times, outline.radius[known].astype(np.float64), 1)
    return float(start + slope * frame)


def _measure_words(videos: Tensor, captions: Sequence[str], parts: Sequence[slice], frames: int) -> dict[str, Figure]:
    """Return the shares of videos with the caption's shape, and colour, in all of these parts."""
    words = [parse_caption(caption) for caption in captions]
    seen = [[read_clip(video[:, part]) for part in parts] for video in videos]
    return {
        f"{name}_{frames}": average(
            all(getattr(reading, name) == getattr(word, name) for reading in readings) for readings, word in zip(seen, words, strict=True)
        )
        for name in ("shape", "colour")
    }
