"""The rate of the clips that a model is trained on."""

from pathlib import Path

import numpy as np
import pytest

from walt_pl.data.frame_rate import trained_rate
from walt_pl.data.index import Index, IndexEntries, write_index
from walt_pl.data.transforms import ClipTransform


def videos(folder: Path, *rates: float, variable: int = -1) -> IndexEntries:
    """The videos of an index, one for each rate; one of them, if wanted, of variable rate."""
    size = {"kind": "video", "frames": 90, "width": 32, "height": 32, "caption": "", "label": -1, "split": "train", "bytes": 1}
    rows = [{"path": f"{n}.mp4", "fps": rate, "variable_rate": n == variable, **size} for n, rate in enumerate(rates)]
    write_index(rows, folder / "index.parquet")
    return Index(folder / "index.parquet", "train").videos


@pytest.mark.parametrize(
    ("rates", "clip_transform", "trained"),
    [
        ((24.0, 30.0), ClipTransform(8, fps=8.0), 8.0),
        ((25.0, 25.0), ClipTransform(8), 25.0),
        ((24.0, 24.0), ClipTransform(8, stride=3), 8.0),
        ((30000 / 1001, 29.97, 30.0), ClipTransform(8), 30000 / 1001),
        ((24.0, 25.0), ClipTransform(8), None),
        ((25.0, 0.0), ClipTransform(8), None),
        ((0.0, 0.0), ClipTransform(8), None),
    ],
)
def test_trained_rate_is_the_one_that_is_set_or_shared(
    tmp_path: Path, rates: tuple[float, ...], clip_transform: ClipTransform, trained: float | None
) -> None:
    assert trained_rate(videos(tmp_path, *rates), np.arange(len(rates)), clip_transform) == trained


def test_trained_rate_counts_only_the_videos_that_are_used(tmp_path: Path) -> None:
    assert trained_rate(videos(tmp_path, 12.0, 25.0, 12.0), np.array([0, 2]), ClipTransform(8)) == 12


def test_trained_rate_is_unknown_where_it_varies_within_a_file(tmp_path: Path) -> None:
    uneven = videos(tmp_path, 12.0, 12.0, variable=1)
    assert trained_rate(uneven, np.arange(2), ClipTransform(8)) is None
    assert trained_rate(uneven, np.arange(2), ClipTransform(8, fps=6.0)) == 6, "sampled by time"
