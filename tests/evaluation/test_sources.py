"""Folders and indexes as sources of clips: frames, sizes, order, and the reason of everything that is not used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.clips import counting_clip, entry_of, numbers, textured_clip
from tests.helpers.hostile_media import write_hostile_media
from walt_pl.data.index import MediaKey, write_index
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.transforms import to_size
from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.draws import draw_generated, draw_real
from walt_pl.evaluation.folder_source import natural_order
from walt_pl.evaluation.source import ClipDraw
from walt_pl.evaluation.sources import open_source
from walt_pl.media.reading import read_video
from walt_pl.media.writing import write_image, write_video
from walt_pl.metrics.protocol import EvaluationProtocol


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of mixed lengths, sizes and rates, an image, and files that cannot be read or are of other kinds."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "inner").mkdir()
    write_video(folder / "clip2.mp4", counting_clip(20), fps=8)
    write_video(folder / "clip10.mp4", counting_clip(40, 96, 64), fps=30)
    write_video(folder / "inner" / "clip1.mkv", counting_clip(12), fps=8)
    whole = (folder / "clip10.mp4").read_bytes()
    (folder / "clip11.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "clip12.avi").write_bytes(b"no video")
    write_image(folder / "picture.png", counting_clip(1)[0])
    (folder / "broken.png").write_bytes(b"no image")
    (folder / ".hidden.mp4").write_bytes(whole)
    (folder / "notes.txt").write_text("a note")
    (folder / "gone.mp4").symlink_to(folder / "nothing.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return folder


def number_of(clip: Tensor | None) -> list[int]:
    assert clip is not None
    return numbers(clip.numpy())


def test_folder_source_lists_nested_files_in_natural_order(folder: Path) -> None:
    source = open_source(str(folder), "train")
    expected = ["broken.png", "clip2.mp4", "clip10.mp4", "clip11.mp4", "clip12.avi", "inner/clip1.mkv", "picture.png", "pipe.mp4"]
    assert source.names() == expected and len(source) == 8
    assert source.lengths() == [1, 20, 40, 0, 0, 12, 1, 0]
    assert sorted(["b", "a10", "a9", "a09", "10", "9"], key=natural_order) == ["9", "10", "a09", "a9", "a10", "b"]


def test_folder_source_counts_every_file_that_is_not_used(folder: Path) -> None:
    drawn = draw_generated(open_source(str(folder), "train"), EvaluationProtocol(clips=1, frames=16))
    assert drawn.left_out == {
        "hidden files": 1,
        "files that are neither videos nor images": 1,
        "links to nothing": 1,
        "images, where the protocol wants videos": 2,
        "cannot be read": 3,
        "shorter than 16 frames": 1,
        "beyond the 1 that the protocol takes": 1,
    }
    images = draw_generated(open_source(str(folder), "train"), EvaluationProtocol(clips=2, frames=1))
    assert images.draws == [(0, 0), (6, 0)] and images.left_out["videos, where the protocol wants images"] == 6


def test_folder_source_reads_the_frames_that_are_drawn_in_order(folder: Path) -> None:
    source = open_source(str(folder), "train")
    read = source.read([ClipDraw(2, 5), ClipDraw(1, 0), ClipDraw(2, 30), ClipDraw(5, 2)], 4, 3, None)
    assert [number_of(clip) for clip in read.clips] == [[5, 8, 11, 14], [0, 3, 6, 9], [30, 33, 36, 39], [2, 5, 8, 11]]
    assert [clip.shape[1] for clip in read.clips if clip is not None] == [96, 64, 96, 64]
    assert not read.failures and not read.captions


def test_folder_source_scales_mixed_sizes_to_one(folder: Path) -> None:
    source = open_source(str(folder), "train")
    read = source.read([ClipDraw(1, 0), ClipDraw(2, 0), ClipDraw(6, 0)], 2, 1, (32, 40))
    assert [tuple(clip.shape) for clip in read.clips if clip is not None] == [(2, 32, 40, 3), (2, 32, 40, 3), (1, 32, 40, 3)]
    assert all(clip is not None and clip.dtype == torch.uint8 for clip in read.clips)
    own = to_size(read_video(folder / "clip2.mp4", 2), 32, 40)
    expected = ((own + 1) * 127.5).round().permute(1, 2, 3, 0).to(torch.uint8)
    assert read.clips[0] is not None and torch.equal(read.clips[0], expected)


def test_folder_source_gives_a_reason_for_a_clip_that_cannot_be_read(folder: Path) -> None:
    source = open_source(str(folder), "train")
    read = source.read([ClipDraw(0, 0), ClipDraw(1, 10), ClipDraw(1, 2), ClipDraw(4, 0)], 16, 1, None)
    assert [clip is None for clip in read.clips] == [True, True, False, True]
    assert set(read.failures) == {0, 1, 3}
    assert "broken.png: not an image that can be read" in read.failures[0]
    assert "clip2.mp4: found 10 frames from frame 10 on, wanted 16" in read.failures[1]
    assert "clip12.avi: not a video that can be read" in read.failures[3]


def test_folder_source_facts_change_with_the_files(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", counting_clip(5), fps=8)
    before = open_source(str(tmp_path), "train").facts()
    assert before == open_source(str(tmp_path), "val").facts()
    assert (before["kind"], before["path"], before["split"], before["files"]) == ("folder", str(tmp_path), None, 1)
    os.utime(tmp_path / "a.mp4", ns=(1, 1))
    touched = open_source(str(tmp_path), "train").facts()
    (tmp_path / "a.mp4").rename(tmp_path / "b.mp4")
    renamed = open_source(str(tmp_path), "train").facts()
    assert len({facts["names_sizes_and_times_sha256"] for facts in (before, touched, renamed)}) == 3


def test_folder_source_lists_a_linked_folder_once(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write_image(tmp_path / "inner" / "a.png", counting_clip(1)[0])
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)
    assert open_source(str(tmp_path), "train").names() == ["inner/a.png"]


def test_cover_and_crop_keeps_every_value_of_a_clip_of_the_size() -> None:
    clip = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(cover_and_crop(clip, (16, 16)), torch.from_numpy(clip))
    cropped = cover_and_crop(textured_clip(2, 16, 24), (16, 16))
    assert torch.equal(cropped, torch.from_numpy(textured_clip(2, 16, 24)[:, :, 4:20]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"empty: no video or image in this folder, 1 files that are neither videos nor images; give a folder of videos"),
        ("none", r"none: no such file or folder; wanted a folder of videos or images, a data index"),
        ("a.txt", r"a\.txt: no source of clips; wanted a folder"),
        ("none.parquet", r"none\.parquet: no such file or folder"),
        ("run", r"run is a run \(it holds manifest\.json\), and real clips are wanted"),
    ],
)
def test_open_source_of_nothing_to_measure_says_what_it_wants(tmp_path: Path, name: str, message: str) -> None:
    for inner in ("empty", "run"):
        (tmp_path / inner).mkdir()
    for file in ("a.txt", "empty/a.txt", "run/manifest.json"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / name), "train")


@pytest.fixture(scope="module")
def index(folder: Path) -> Path:
    """An index of two videos and an image in train, and of one video in test."""
    clip2, clip10 = entry_of(folder / "clip2.mp4"), entry_of(folder / "clip10.mp4")
    fields = ("frames", "fps", "width", "height", "bytes", "duration", "decoder")
    rows = [
        {"path": entry.path.name, "kind": "video", "caption": caption, "label": label, "split": split}
        | {name: getattr(entry, name) for name in fields}
        for entry, caption, label, split in [(clip10, "ten", 1, "train"), (clip2, "two", 2, "train"), (clip2, "", -1, "test")]
    ]
    image = {"path": "picture.png", "kind": "image", "frames": 1, "fps": 0.0, "width": 96, "height": 64, "bytes": 1}
    rows.append(image | {"caption": "picture", "label": 3, "split": "train"})
    write_index(rows, folder / "clips.parquet")
    return folder / "clips.parquet"


def test_index_source_reads_the_clips_of_its_split_with_captions_and_labels(index: Path) -> None:
    source = open_source(str(index), "train")
    assert source.names() == ["clip10.mp4", "clip2.mp4", "picture.png"]
    assert (source.lengths(), source.kinds()) == ([40, 20, 1], ["video", "video", "image"])
    read = source.read([ClipDraw(1, 3), ClipDraw(0, 20), ClipDraw(2, 0)], 3, 2, None)
    assert [number_of(clip) for clip in read.clips] == [[3, 5, 7], [20, 22, 24], [0]]
    assert (read.captions, read.labels) == (["two", "ten", "picture"], [2, 1, 3])
    assert not read.failures


def test_index_source_of_all_has_every_split(index: Path) -> None:
    source = open_source(str(index), "all")
    assert sorted(source.names()) == ["clip10.mp4", "clip2.mp4", "clip2.mp4", "picture.png"]
    assert len(open_source(str(index), "test")) == 1
    assert source.facts() == open_source(str(index), "test").facts() | {"split": "all"}


def test_index_source_of_an_unknown_split_names_those_that_there_are(index: Path) -> None:
    with pytest.raises(ValueError, match=r'nothing in split "val" \(splits found: test, train\); give --split with one of them'):
        open_source(str(index), "val")


def test_index_source_leaves_out_quarantined_files_and_counts_them(index: Path) -> None:
    before = open_source(str(index), "train").facts()
    listed = Quarantine.beside(index)
    listed.add(MediaKey("clip10.mp4"), "corrupt: a test")
    listed.write()
    try:
        source = open_source(str(index), "train")
        assert source.names() == ["clip2.mp4", "picture.png"] and source.lengths() == [20, 1]
        assert number_of(source.read([ClipDraw(0, 7)], 1, 1, None).clips[0]) == [7]
        drawn = draw_real(source, EvaluationProtocol(real_clips=1, frames=16))
        assert drawn.left_out == {"quarantined": 1, "images, where the protocol wants videos": 1}
        assert source.facts()["quarantine_sha256"] and "quarantine_sha256" not in before
    finally:
        listed.path.unlink()


def test_index_source_with_too_few_clips_says_where_and_what_to_type(index: Path) -> None:
    with pytest.raises(ValueError, match=r"found 2 clips in .*clips\.parquet split train .*2,048: index more, or .* --clips 2$"):
        draw_real(open_source(str(index), "train"), EvaluationProtocol())


def test_folder_source_of_hostile_files_gives_reasons_and_ends(tmp_path: Path) -> None:
    write_video(tmp_path / "secret.mp4", counting_clip(12), fps=8)
    (tmp_path / "hostile").mkdir()
    write_hostile_media(tmp_path / "hostile", tmp_path / "secret.mp4", port=1)
    source = open_source(str(tmp_path / "hostile"), "train")
    lengths = dict(zip(source.names(), source.lengths(), strict=True))
    assert lengths["secret.mp4"] == 12 and lengths["hls.mp4"] == lengths["pipe.mp4"] == lengths["frames.mp4"] == 0
    read = source.read([ClipDraw(item, 0) for item in range(len(source))], 1, 1, (16, 16))
    assert all((clip is None) == (number in read.failures) for number, clip in enumerate(read.clips))
    assert {"large.png", "eps.png", "pipe.png", "hls.mp4"} <= {source.names()[number] for number in read.failures}
