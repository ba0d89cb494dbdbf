"""A hostile item of a folder, a table or a shard is a finding of that item, never the end of the index."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.attack.index import HOSTILE
from tests.helpers.sources import touch
from walt_pl.data.index import MediaKey
from walt_pl.data.quarantine import Quarantine
from walt_pl.indexing.build_index import _open_journal, _read_journal, build_index, journal_of
from walt_pl.indexing.dataset_layouts import layout_of, list_source
from walt_pl.indexing.probe_file import digest, stat_media_file
from walt_pl.indexing.shard_names import expand
from walt_pl.media.writing import write_image

SLOW = {"line of 300 MB"}


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - SLOW))
def test_list_source_reports_a_hostile_item_and_lists_the_good_one(tmp_path: Path, name: str) -> None:
    import numpy as np

    write_image(tmp_path / "good.png", np.zeros((16, 16, 3), np.uint8))
    listing = list_source(str(HOSTILE[name](tmp_path)))
    assert any(item.file.endswith(("good.png", "shard.tar")) and item.label == -1 for item in listing.items)
    # The files themselves are examined later, and so are names that no index can hold.
    later = {"clip that is a pipe", "clip that is a link to itself", "clip that is a device", "clip whose name is not UTF-8"}
    assert bool(listing.notes) == (name not in later | {"path that is a device"}), listing.notes
    for item in listing.items:
        item.caption.encode()
        item.split.encode()
        assert isinstance(item.label, str) or -(2**31) <= item.label < 2**31


def test_list_source_takes_no_caption_from_outside_of_the_source(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    touch(source, "a.mp4")
    touch(source, "b.mp4")
    touch(source, "texts/b.txt")
    touch(other, "c.mp4")
    (source / "texts" / "b.txt").write_text("a bird")
    (other / "c.txt").write_text("a cat")
    (tmp_path / "private.txt").write_text("private words")
    (source / "a.txt").symlink_to("../private.txt")
    (source / "b.txt").symlink_to("texts/b.txt")
    (source / "linked").symlink_to(other)
    (tmp_path / "link").symlink_to(source)
    for path in (source, tmp_path / "link"):
        listing = list_source(str(path))
        assert [(Path(item.file).name, item.caption) for item in listing.items] == [("a.mp4", ""), ("b.mp4", "a bird"), ("c.mp4", "a cat")]
        assert any("caption not used, places: 1" in note and "outside of" in note for note in listing.notes)
        assert "private" not in str([item.caption for item in listing.items])


def test_list_source_takes_no_list_from_outside_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    touch(source, "UCF-101/Walk/v_Walk_g01_c01.avi")
    lists = source / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("Walk/v_Walk_g01_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("")
    (tmp_path / "private.txt").write_text("1 secret\n")
    (lists / "classInd.txt").symlink_to("../../private.txt")
    with pytest.raises(ValueError, match=r"classInd\.txt: a link to a place outside of .*cp -L"):
        list_source(str(source))


def test_build_index_quarantines_pipes_links_to_themselves_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    build_index(list_source(str(tmp_path)), tmp_path / "i.parquet")
    reasons = Quarantine.beside(tmp_path / "i.parquet").reasons
    assert reasons == {MediaKey(name): "missing: not a plain file" for name in ("pipe.mp4", "loop.mp4", "zero.png")}
    for name in ("pipe.mp4", "loop.mp4", "zero.png", "null\0byte.png"):
        assert digest(stat_media_file(str(tmp_path / name), "video")) == ""


def test_list_source_of_a_deep_folder_ends(tmp_path: Path) -> None:
    folder = tmp_path
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(2200):  # deeper than Python's limit of recursion, and longer than a path may be
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    touch(tmp_path, "good.png")
    try:
        listing = list_source(str(tmp_path))
        assert [Path(item.file).name for item in listing.items] == ["good.png"]
        assert listing.notes == ["left out, neither video nor image: 1 without an ending"]
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # too deep for shutil


def test_layout_of_opens_no_pipe(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "a.csv")
    assert layout_of(str(tmp_path)) == "folder"
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"1 shards are no plain files and are left out, the first: .*a\.tar"):
        list_source(str(tmp_path))


@pytest.mark.parametrize("pattern", ["a-{0..99999999}.tar", "{0..9999}{0..9999}.tar", "{0..99999999999999999999999999}.tar"])
def test_expand_ends_at_once_with_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="stands for more than 1,000,000 names"):
        expand(pattern)


def test_list_source_ucf101_leaves_out_lines_that_lead_elsewhere(tmp_path: Path) -> None:
    clip = "UCF-101/Walk/v_Walk_g01_c01.avi"
    touch(tmp_path, clip)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("Walk/v_Walk_g01_c01.avi 1\n/etc/passwd 1\n../../x.avi 1\n/etc/x.avi 1\n")
    (lists / "testlist01.txt").write_text("")
    (lists / "classInd.txt").write_text("1 Walk\n2\n")
    listing = list_source(str(tmp_path))
    assert [item.file for item in listing.items] == [str(tmp_path / clip)]
    assert any("3 lines of the lists name no clip below the folder" in note for note in listing.notes)


@pytest.mark.parametrize("line", ['["a"]', "[" * 9000, '[["a.mp4", -1, 0, 0], [1]]', '[[["a"], -1, 0.0, 0.0], [1, 2]]', "null", "\\ud800"])
def test_read_journal_skips_hostile_lines(tmp_path: Path, line: str) -> None:
    out = tmp_path / "i.parquet"
    good = ["a.mp4", -1, 0.0, 0.0], [9, 9, 17, 8.0, 4, 4, 2.0, "pyav", False, False, False, "", ""]
    hostile = [
        [good[0], [*good[1][:2], 10**30, *good[1][3:]]],
        [good[0], [*good[1][:3], float("nan"), *good[1][4:]]],
        [["a.mp4", 10**30, 0.0, 0.0], good[1]],
        [good[0], [*good[1][:-1], 5]],
    ]
    journal_of(out).write_text("\n".join([line, *map(json.dumps, hostile), json.dumps(good), ""]))
    assert [place for place, _ in _read_journal(out)] == [MediaKey("a.mp4")]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_journal_is_appended_to_a_plain_file_only(tmp_path: Path, kind: str) -> None:
    out, victim = tmp_path / "i.parquet", tmp_path / "victim"
    victim.write_text("mine\n")
    make = {"link": lambda path: path.symlink_to(victim), "pipe": os.mkfifo, "folder": lambda path: path.mkdir()}
    make[kind](journal_of(out))
    assert list(_read_journal(out)) == []
    with pytest.raises(ValueError, match="is not a plain file; remove it"):
        _open_journal(out)
    assert victim.read_text() == "mine\n"
