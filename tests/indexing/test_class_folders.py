"""Folders that look like classes are pointed out, others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sources import touch
from walt_pl.indexing.dataset_layouts import list_source


def notes(folder: Path, *names: str, layout: str = "auto") -> list[str]:
    touch(folder, *names)
    return [note for note in list_source(str(folder), layout).notes if "--layout classes" in note]  # type: ignore[arg-type]


def both(*folders: str) -> list[str]:
    return [f"{folder}/{folder.replace('/', '_')}{number}.mp4" for folder in folders for number in range(2)]


@pytest.mark.parametrize(
    ("folders", "shown"),
    [
        (("cat", "dog"), "its 2 folders look like classes (cat, dog): --layout classes"),
        (("ApplyEyeMakeup", "Archery", "class 3", "YoYo"), "its 4 folders look like classes (ApplyEyeMakeup, Archery, YoYo, ...): "),
        (("train/cat", "train/dog", "val/cat"), "its 2 folders look like classes (cat, dog): "),
    ],
)
def test_list_source_points_out_folders_that_look_like_classes(tmp_path: Path, folders: tuple[str, ...], shown: str) -> None:
    (note,) = notes(tmp_path, *both(*folders))
    assert note.startswith(shown)
    assert notes(tmp_path, layout="classes") == [], "what it says to type"


@pytest.mark.parametrize(
    "folders",
    [
        ("2024-05-01", "2024-05-02"),
        ("20240501", "20240502"),
        ("May 2024 hike", "June 2024 beach"),
        ("january", "february"),
        ("part1", "part2"),
        ("cam_01", "cam_02"),
        ("000", "001"),
        ("cat",),
        ("train", "val"),
        ("a/cat", "a/dog"),
        ("cat", "dog", "dog/small"),
    ],
)
def test_list_source_says_nothing_of_dates_numbers_splits_and_trees(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert notes(tmp_path, *both(*folders)) == []


def test_list_source_says_nothing_of_folders_where_a_sign_against_classes_is_there(tmp_path: Path) -> None:
    assert notes(tmp_path / "loose", *both("cat", "dog"), "a.mp4") == []
    assert notes(tmp_path / "single", *both("cat", "dog"), "bird/a.mp4") == []
    assert notes(tmp_path / "typed", *both("cat", "dog"), layout="folder") == []
    touch(tmp_path / "told", *both("cat", "dog"))
    (tmp_path / "told" / "cat" / "cat0.txt").write_text("a cat")
    assert notes(tmp_path / "told") == []
