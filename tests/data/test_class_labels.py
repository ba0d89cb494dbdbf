"""Labels of an index against the classes of a model, in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from walt_pl.data.class_labels import describe_labels
from walt_pl.data.index import Index, write_index
from walt_pl.data.selection import Bucket, select
from walt_pl.data.transforms import ClipTransform


def lines(folder: Path, labels: list[int], num_classes: int | None, names: list[str] | None = None) -> list[str]:
    size = {"frames": 17, "fps": 8.0, "width": 32, "height": 32, "caption": "", "bytes": 1, "duration": 2.125, "split": "train"}
    write_index([{"path": f"{n}.mp4", "kind": "video", "label": label, **size} for n, label in enumerate(labels)], folder / "i.parquet")
    entries = {"video": Index(folder / "i.parquet", "train").videos}
    none = {"video": np.empty(0, np.int64)}
    selections = select(entries, ClipTransform(32), [Bucket(32, 32)], none, num_classes=num_classes)  # type: ignore[arg-type]
    return describe_labels(entries, selections, num_classes, names or [])  # type: ignore[arg-type]


def test_describe_labels_names_the_first_clips_of_each_reason(tmp_path: Path) -> None:
    assert lines(tmp_path, [7, 0, -1, 5, 4, 8, 9, 0], 5) == [
        "  2 of the 5 classes (model.denoiser.num_classes) have clips or images",
        "  no label: 2.mp4 (-1)",
        "  a label outside of 0 to 4: 0.mp4 (7), 3.mp4 (5), 5.mp4 (8) and 1 more",
    ]


def test_describe_labels_tells_names_beyond_the_model_with_both_figures(tmp_path: Path) -> None:
    assert lines(tmp_path, [0, 1], 2, ["ant", "bee", "cat"])[1:] == [
        '  the index names 3 classes, and model.denoiser.num_classes is 2: set it to 3, or those from number 2 ("cat") on are not trained'
    ]
    assert len(lines(tmp_path, [0, 1], 2, ["ant", "bee"])) == 1


def test_describe_labels_says_what_to_do_without_any_label(tmp_path: Path) -> None:
    first = lines(tmp_path, [-1, -1], 5)[0]
    assert "0 of the 5 classes" in first and "index a source with labels" in first and "num_classes null" in first


def test_describe_labels_says_nothing_of_a_model_without_classes(tmp_path: Path) -> None:
    assert lines(tmp_path, [7, -1], None, ["ant"]) == []
