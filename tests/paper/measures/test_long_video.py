"""Seams of long videos with known paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.known_cascade import KnownCascade, paint_path
from walt_pl.data.index import Index
from walt_pl.paper.figure import Figure
from walt_pl.paper.measures.common import extend_path
from walt_pl.paper.measures.long_video import Seams, measure_long_video
from walt_pl.shapes.dataset import COLOURS, parse_caption

FRAMES = 53
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def long_video(caption: str, jumps: dict[int, float] | None = None, grows: dict[int, float] | None = None) -> Tensor:
    """A video [3 53 32 32] that moves slowly enough to stay in the frame, as its caption says.

    Args:
        caption: caption of the object.
        jumps: pixels that the object jumps downwards, or to the right where it moves along y, by the frame.
        grows: pixels that the radius jumps, by the frame.
    """
    time = np.floor(np.arange(FRAMES) / 2)
    motion = str(parse_caption(caption).motion)
    direction = np.array(STEP.get(motion, (0, 0)))
    centres = 0.5 - direction * 0.15 + direction * 0.012 * time[:, None]
    across = np.array([1, 0] if motion in ("up", "down") else [0, 1])
    for frame, distance in (jumps or {}).items():
        centres[frame:] += across * distance / 32
    growth = {"growing": 0.0025, "shrinking": -0.0025}.get(motion, 0)
    radii = 0.25 + growth * (np.arange(FRAMES) - FRAMES / 2)
    for frame, distance in (grows or {}).items():
        radii[frame:] += distance / 32
    return paint_path(caption, centres, radii)


@pytest.fixture(scope="module")
def captions(painted: Path) -> list[str]:
    return [entry.caption for entry in Index(painted, "val").videos]


def measured(videos: list[Tensor], index: Path, patch: pytest.MonkeyPatch) -> dict[str, Figure]:
    KnownCascade({"base_long_video": torch.stack(videos)}).use(patch)
    return dict(measure_long_video(Path("none"), index, 0, True).figures)


def test_seams_are_where_segments_of_17_frames_overlap_by_5() -> None:
    seams = Seams(17, 5)
    assert seams.first_new == [17, 29, 41] and [seams.end(count) for count in (1, 2, 4)] == [17, 29, 53]
    assert seams.new_frames(3) == [slice(0, 17), slice(17, 29), slice(29, 41)]


def test_extend_path_goes_on_by_a_step_every_second_frame() -> None:
    centre = np.stack([3 + 1.5 * np.floor(np.arange(17) / 2), np.full(17, 9.0)], axis=-1).astype(np.float32)
    path = extend_path(centre, slice(0, 5), 20)
    assert np.allclose(path[:17], centre) and np.allclose(path[17:], [[15, 9], [16.5, 9], [16.5, 9]])


def test_measure_long_video_without_seams_has_no_error(painted: Path, captions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = measured([long_video(caption) for caption in captions], painted, monkeypatch)
    for name in ("seam_1", "seam_2", "seam_3", "seam_size_1", "seam_size_2", "seam_size_3", "inside", "inside_size"):
        assert figures[name].value < 0.3 and figures[name].cases == len(captions), name
    for name in ("shape_29", "colour_29", "visible_29", "shape_53", "colour_53", "visible_53", "motion_2"):
        assert figures[name].value == 1, name


def test_measure_long_video_measures_a_jump_at_its_seam(painted: Path, captions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = measured([long_video(caption, jumps={17: 3, 41: -2}) for caption in captions], painted, monkeypatch)
    assert figures["seam_1"].value == pytest.approx(3, abs=0.2) and figures["seam_3"].value == pytest.approx(2, abs=0.2)
    assert figures["seam_2"].value < 0.3 and figures["inside"].value < 0.3
    figures = measured([long_video(caption, grows={29: 1}) for caption in captions], painted, monkeypatch)
    assert figures["seam_size_2"].value == pytest.approx(1, abs=0.2)
    assert figures["seam_size_1"].value < 0.3 and figures["seam_size_3"].value < 0.3


def test_measure_long_video_reads_words_in_every_segment(painted: Path, captions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    videos = []
    for caption in captions:
        colour = parse_caption(caption).colour
        other = long_video(caption.replace(colour, COLOURS[COLOURS.index(colour) - 1]))
        videos.append(torch.cat([long_video(caption)[:, :29], other[:, 29:]], dim=1))
    figures = measured(videos, painted, monkeypatch)
    assert figures["colour_29"].value == 1 and figures["colour_53"].value == 0 and figures["shape_29"].value == 1


def test_measure_long_video_counts_objects_that_vanish(painted: Path, captions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [long_video(caption) for caption in captions]
    videos[0][:, 35:] = -0.7
    figures = measured(videos, painted, monkeypatch)
    assert figures["visible_29"].value == 1 and figures["visible_53"].value == pytest.approx(1 - 1 / len(captions))
    assert figures["seam_3"].cases == len(captions) - 1 and figures["seam_3"].value < 0.3
    for video in videos[1:]:
        video[:, 35:] = -0.7
    figures = measured(videos, painted, monkeypatch)
    assert "seam_3" not in figures and figures["visible_53"].value == 0 and figures["seam_2"].cases == len(captions)
