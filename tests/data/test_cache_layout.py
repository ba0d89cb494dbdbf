"""Folders of the latent caches: one for each selection of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from walt_pl.data.cache_layout import bucket_caches
from walt_pl.data.index import Index, write_index
from walt_pl.data.selection import Bucket, select
from walt_pl.data.transforms import ClipTransform

TRANSFORM = ClipTransform(32, frames=9)


def write_clips(labels: list[int], out: Path) -> Path:
    size = {"frames": 17, "fps": 8.0, "width": 32, "height": 32, "caption": "", "bytes": 1, "duration": 2.125, "split": "train"}
    write_index([{"path": f"{n}.mp4", "kind": "video", "label": label, **size} for n, label in enumerate(labels)], out)
    return out


def folder_of(index: Path, num_classes: int | None, quarantined: list[int]) -> tuple[str, int]:
    """Return the name of the folder that has the latents of the clips, and their number."""
    entries, marked = {"video": Index(index, "train").videos}, {"video": np.array(quarantined, np.int64)}
    selections = select(entries, TRANSFORM, [Bucket(32, 32)], marked, num_classes=num_classes)  # type: ignore[arg-type]
    (cache,) = bucket_caches(Path("train"), {}, TRANSFORM, selections, 0).values()
    count = cache.key["count"]
    assert isinstance(count, int)
    return cache.folder.parent.name, count


@pytest.mark.parametrize("quarantined", [[], [7], [8], [7, 8], [2, 7, 8], list(range(1, 9))])
def test_bucket_caches_of_classes_has_a_folder_of_its_own_whatever_is_quarantined(tmp_path: Path, quarantined: list[int]) -> None:
    index = write_clips([0, 1, 2, 0, 1, 2, 0, -1, 9], tmp_path / "i.parquet")
    assert folder_of(index, None, quarantined) == ("train", 9)
    found = folder_of(index, 3, quarantined)
    assert found == folder_of(index, 3, []) and found[0].startswith("train-") and found[1] == 7


@pytest.mark.parametrize("quarantined", [[], [3]])
def test_bucket_caches_of_fitting_labels_keeps_the_folder_of_a_stage_without_classes(tmp_path: Path, quarantined: list[int]) -> None:
    index = write_clips([0, 1, 2, 1], tmp_path / "i.parquet")
    assert folder_of(index, 3, quarantined) == folder_of(index, None, quarantined) == ("train", 4)
