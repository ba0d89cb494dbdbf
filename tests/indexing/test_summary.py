"""Counts of an index by split and by folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from walt_pl.cli.console import print_table
from walt_pl.data.index import MediaKey, write_index
from walt_pl.data.quarantine import Quarantine
from walt_pl.indexing.summary import COLUMNS, count_rows, group_folders, render_summary

ROW = {"kind": "video", "frames": 17, "fps": 8.0, "width": 8, "height": 8, "caption": "", "label": -1, "split": "train", "bytes": 9}
STILL = {**ROW, "frames": 1}
IMAGE = {**ROW, "kind": "image", "frames": 1, "fps": 0.0}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rows = [
        {**ROW, "path": "../films/a.mp4", "caption": "a", "label": 0},
        {**ROW, "path": "../films/deep/b.mp4", "caption": "b"},
        {**ROW, "path": "../films/broken.mp4", "frames": 0},
        {**STILL, "path": "../films/c.mp4", "label": 3, "split": "val"},
        {**IMAGE, "path": "../pictures/set/d.png", "split": "val"},
        {**IMAGE, "path": "../pictures/set/e.png", "caption": "e"},
        {**ROW, "path": "../films/deep/b.mp4", "begin": 1.0, "end": 2.0},
    ]
    write_index(rows, tmp_path / "i.parquet")
    quarantine = Quarantine.beside(tmp_path / "i.parquet")
    quarantine.add(MediaKey("../films/broken.mp4"), "corrupt: x")
    quarantine.add(MediaKey("../films/deep/b.mp4"), "shows my face")
    quarantine.add(MediaKey("../films/elsewhere.mp4"), "corrupt: not in this index")
    quarantine.write()
    return tmp_path / "i.parquet"


def test_count_rows_counts_kinds_words_and_what_is_not_used(index: Path) -> None:
    counts = count_rows(index)
    assert {name: tuple(row[column] for column in COLUMNS) for name, row in counts["split"].items()} == {
        "train": (4, 0, 1, 3, 1, 3),
        "val": (0, 1, 1, 0, 1, 0),
    }
    assert {name: tuple(row[column] for column in COLUMNS) for name, row in counts["folder"].items()} == {
        "../films": (4, 1, 0, 2, 2, 3),
        "../pictures/set": (0, 0, 2, 1, 0, 0),
    }


def test_render_summary_shows_every_count_and_explains_words(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(render_summary(index))
    said = capsys.readouterr().out
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in said.splitlines() if len(cells := line.split("│")) > 2}
    assert rows["all"] == ["4", "1", "2", "3", "2", "3"] and rows["split val"] == ["0", "1", "1", "0", "1", "0"]
    assert rows["folder ../films"] == ["4", "1", "0", "2", "2", "3"]
    assert "stills: videos of one frame" in said and "not used: in the quarantine list" in said


def test_render_summary_carries_no_control_characters_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_index([{**ROW, "path": f"{name}/a.mp4", "split": "t\x1b[2J"} for name in ("x\x1b]0;y", "z")], tmp_path / "i.parquet")
    print_table(render_summary(tmp_path / "i.parquet"))
    assert "\x1b" not in capsys.readouterr().out


def test_count_rows_of_an_empty_index_is_empty(tmp_path: Path) -> None:
    write_index([], tmp_path / "i.parquet")
    assert count_rows(tmp_path / "i.parquet") == {"split": {}, "folder": {}}
    print_table(render_summary(tmp_path / "i.parquet"))


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (["../a", "../a/b"], ["../a", "../a"]),
        (["../a/x/1", "../a/x/2", "../b/y"], ["../a/x", "../a/x", "../b/y"]),
        (["../a/train", "../a/val/cat", "../a/test"], ["../a"] * 3),
        ([f"../a/class{n}" for n in range(9)], ["../a"] * 9),
        (["", "clips"], [".", "clips"]),
        (["../../data/a", "../b"], ["../../data/a", "../b"]),
        ([""], ["."]),
        ([], []),
    ],
)
def test_group_folders_names_the_folders_that_sources_lie_in(folders: list[str], wanted: list[str]) -> None:
    assert group_folders(folders) == wanted
