"""The embedded set: scenes, captions, pictures and files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.helpers.environment import ROOT
from walt_pl.cli.main import main
from walt_pl.data.index import Index
from walt_pl.data.quarantine import Quarantine
from walt_pl.indexing import doctor
from walt_pl.indexing.build_index import IndexOptions, build_index
from walt_pl.media.reading import read_image, read_video
from walt_pl.media.types import Frames
from walt_pl.shapes import dataset as shapes
from walt_pl.shapes.dataset import (
    COLOURS,
    MOTIONS,
    PAIRS,
    RGB,
    SEEN_PAIRS,
    SHAPES,
    TEXTURES,
    UNSEEN_PAIRS,
    Scene,
    Words,
    paint,
    parse_caption,
    remove_set,
    sample_scene,
    write_set,
)

STILL = Scene("circle", "red", None, "plain", (0.5, 0.5), (0.5, 0.5), (0.3, 0.3), 40)


def scenes(count: int, *, still: bool = False) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng, still=still) for _ in range(count)]


def object_mask(scene: Scene, frames: int = 17, size: int = 128) -> NDArray[np.bool_]:
    # Two fifths of the colour: under the troughs of the textures, over the outer half of a soft edge, whatever its width.
    return np.asarray(np.ptp(paint(scene, frames, size).astype(int), axis=-1) > 0.4 * np.ptp(RGB[scene.colour]))


def test_scene_caption_names_all_its_words() -> None:
    moving = replace(STILL, motion="left", texture="striped")
    assert moving.caption == "a striped red circle moving left"
    assert replace(STILL, motion="growing", colour="blue", shape="bar").caption == "a plain blue bar growing"
    assert replace(STILL, texture="dotted").caption == "a dotted red circle"


def test_parse_caption_reads_every_caption() -> None:
    for shape, colour, motion, texture in product(SHAPES, COLOURS, (*MOTIONS, None), TEXTURES):
        scene = replace(STILL, shape=shape, colour=colour, motion=motion, texture=texture)
        assert parse_caption(scene.caption) == Words(shape, colour, motion, texture)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a cat",
        "a striped red circle ",
        "a striped red circle flying",
        "a striped red circle moving",
        "a striped red circle left",
        "a striped red circle moving growing",
        "a red striped circle moving left",
        "a striped red circle moving left again",
        "a striped pink circle moving left",
    ],
)
def test_parse_caption_refuses_other_sentences(caption: str) -> None:
    with pytest.raises(ValueError, match="no caption of the shapes"):
        parse_caption(caption)


def test_unseen_pairs_share_their_words_with_seen_ones() -> None:
    assert len(UNSEEN_PAIRS) == 4 and len(SEEN_PAIRS) == 14 and set(SEEN_PAIRS) | set(UNSEEN_PAIRS) == set(PAIRS)
    for shape, colour in UNSEEN_PAIRS:
        assert any(pair[0] == shape for pair in SEEN_PAIRS) and any(pair[1] == colour for pair in SEEN_PAIRS)


def test_sample_scene_is_equal_for_equal_seeds() -> None:
    assert scenes(5) == scenes(5)
    assert len(set(scenes(50))) == 50


def test_sample_scene_draws_all_words_about_equally_often() -> None:
    drawn = scenes(1800)
    for words, name in ((SHAPES, "shape"), (COLOURS, "colour"), (MOTIONS, "motion"), (TEXTURES, "texture")):
        counts = Counter(getattr(scene, name) for scene in drawn)
        assert set(counts) == set(words)
        assert min(counts.values()) > 0.8 * 1800 / len(words)
    assert all(scene.motion is None for scene in scenes(50, still=True))


def test_sample_scene_objects_are_large_stay_in_the_frame_and_move_far() -> None:
    for scene in scenes(1000):
        travel = np.abs(np.subtract(scene.end, scene.start)).max()
        if scene.motion in ("growing", "shrinking"):
            assert travel == 0 and 0.19 <= min(scene.radius) <= 0.21 and 0.32 <= max(scene.radius) <= 0.34
        else:
            assert travel == pytest.approx(0.34375) and 0.26 <= scene.radius[0] == scene.radius[1] <= 0.305
        wide, high = shapes._EXTENT[scene.shape]
        for (x, y), radius in zip((scene.start, scene.end), scene.radius, strict=True):
            # So much of the side is five pixels of 128: the largest, on the lattice of waves.
            assert min(x, 1 - x) >= wide * radius - 0.04 and min(y, 1 - y) >= high * radius - 0.04


def test_sample_scene_of_another_aspect_fills_the_width_and_keeps_the_margins() -> None:
    rng = np.random.default_rng(0)
    wide = [sample_scene(rng, aspect=1.75) for _ in range(1000)]
    for scene in wide:
        width, height = shapes._EXTENT[scene.shape]
        for (x, y), radius in zip((scene.start, scene.end), scene.radius, strict=True):
            assert min(x, 1.75 - x) >= width * radius - 0.04 and min(y, 1 - y) >= height * radius - 0.04
    still = [scene.start[0] for scene in wide if scene.motion in ("up", "down")]
    assert min(still) < 0.4 and max(still) > 1.35
    square = scenes(5)
    rng = np.random.default_rng(0)
    assert [sample_scene(rng, aspect=1.0) for _ in range(5)] == square


def test_paint_of_another_aspect_is_the_square_picture_with_more_columns() -> None:
    for scene in scenes(6):
        square, wide = paint(scene, 3, 64), paint(scene, 3, 64, aspect=1.75)
        assert wide.shape == (3, 64, 112, 3)
        assert np.array_equal(wide[:, :, :64], square)


def test_paint_moves_the_object_as_the_caption_says() -> None:
    grid = np.arange(128)
    for scene in scenes(60):
        first, last = object_mask(scene)[[0, -1]]
        right = (last.sum(0) @ grid) / last.sum() - (first.sum(0) @ grid) / first.sum()
        down = (last.sum(1) @ grid) / last.sum() - (first.sum(1) @ grid) / first.sum()
        growth = 128 * (np.sqrt(last.mean()) - np.sqrt(first.mean()))
        change = {"right": right, "left": -right, "down": down, "up": -down, "growing": growth, "shrinking": -growth}
        assert max(change, key=lambda motion: change[motion]) == scene.motion
        assert change[str(scene.motion)] > 18


def test_paint_shapes_have_comparable_areas() -> None:
    areas = [object_mask(replace(STILL, shape=shape), 1).sum() for shape in SHAPES]
    assert max(areas) < 1.4 * min(areas)


def test_paint_textures_have_equal_mean_colour() -> None:
    means = []
    for texture in TEXTURES:
        picture = paint(replace(STILL, texture=texture), 1)[0].astype(float)
        means.append(picture[42:86, 42:86].mean((0, 1)))  # 44 pixels: eight waves
    assert np.abs(np.subtract(means, RGB["red"])).max() < 1.5


def test_paint_texture_is_fixed_to_the_object() -> None:
    scene = replace(STILL, texture="dotted", motion="right", end=(0.5 + 32 / 128, 0.5))
    first, last = paint(scene)[[0, -1]]
    assert np.abs(first[30:98, 30:96].astype(int) - last[30:98, 62:128]).max() <= 1
    grown = paint(replace(STILL, texture="dotted", radius=(0.2, 0.34), motion="growing"))
    assert np.array_equal(grown[0, 52:76, 52:76], grown[-1, 52:76, 52:76])


def test_paint_texture_crests_of_a_moving_object_stay_in_place() -> None:
    moving = [scene for scene in scenes(60) if scene.motion in ("left", "right", "up", "down") and scene.texture != "plain"]
    assert len(moving) > 10
    for scene in moving:
        clip = paint(scene).astype(int)
        whole = paint(replace(scene, texture="plain")).max(-1) == max(RGB[scene.colour])  # no soft edge
        for number in range(16):
            both = (whole[number] & whole[number + 1])[..., None]
            assert both.sum() > 400
            assert (np.abs(clip[number] - clip[number + 1]) * both).max() <= 1


def test_paint_edges_are_soft_and_the_background_is_plain() -> None:
    picture: Frames = paint(STILL, 1)[0]
    assert np.all(picture[:20] == 40)
    values = np.unique(picture[..., 0])
    assert len(values) > 15 and values.min() == 40 and values.max() == RGB["red"][0]


def test_paint_smaller_pictures_show_the_same_scene() -> None:
    for scene in scenes(6):
        large, small = object_mask(scene, 3), object_mask(scene, 3, 32)
        assert np.abs(large.mean((1, 2)) - small.mean((1, 2))).max() < 0.02
    assert np.ptp(paint(replace(STILL, texture="dotted"), 1, 16)[0, 6:10, 6:10], axis=(0, 1)).max() == 0


def test_paint_takes_a_few_milliseconds_a_clip() -> None:
    drawn = scenes(20)
    begin = time.process_time()
    for scene in drawn:
        paint(scene)
    assert (time.process_time() - begin) / len(drawn) < 0.04  # 8 ms on a quiet core


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "shapes", videos=14, images=18, validation=12)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_write_set_splits_have_their_counts_and_pairs(written: Path) -> None:
    train, val, unseen = (Index(written, split) for split in ("train", "val", "unseen"))
    assert [len(part) for part in (train.videos, train.images, val.videos, val.images)] == [14, 18, 12, 2]
    assert len(unseen.videos) == 4 and len(unseen.images) == 0
    pairs = {part: {parse_caption(entry.caption)[:2] for entry in part} for part in (train.videos, train.images)}
    assert pairs[train.videos] == set(SEEN_PAIRS) and pairs[train.images] == set(PAIRS)
    assert {parse_caption(entry.caption)[:2] for entry in unseen.videos} == set(UNSEEN_PAIRS)
    assert not set(UNSEEN_PAIRS) & {parse_caption(entry.caption)[:2] for entry in val.videos}


def test_write_set_images_show_unseen_pairs_in_every_texture() -> None:
    jobs = [job for job in shapes._jobs(2000, 1000, 300, 0) if job.still and job.split == "train"]
    drawn = (sample_scene(np.random.default_rng(job.seed), still=True, pairs=(job.pair,)) for job in jobs)
    found = Counter((scene.shape, scene.colour, scene.texture) for scene in drawn)
    assert min(found[*pair, texture] for pair, texture in product(UNSEEN_PAIRS, TEXTURES)) >= 8


def test_write_set_files_are_as_the_index_says(written: Path) -> None:
    index = Index(written, "train")
    for entry in index.videos:
        assert read_video(entry.path, 17).shape == (17, 128, 128, 3)
        assert (entry.frames, entry.fps, entry.bytes) == (17, 8.0, entry.path.stat().st_size)
        assert PAIRS[entry.label] == parse_caption(entry.caption)[:2]
    for entry in index.images:
        assert read_image(entry.path).shape == (1, 128, 128, 3)
        assert parse_caption(entry.caption).motion is None
    assert {entry.path.suffix for entry in index.images} == {".png", ".jpg"}


def test_write_set_second_call_changes_nothing(written: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in written.parent.rglob("*.*4") if file.is_file()}
    stamp = written.stat().st_mtime_ns
    assert write_set(written.parent, videos=14, images=18, validation=12) == written
    assert written.stat().st_mtime_ns == stamp
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_write_set_same_seed_gives_the_same_bytes_and_repairs_damage(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = write_set(tmp_path / "again", videos=14, images=18, validation=12)
    wanted = content(written.parent)
    assert content(again.parent) == wanted
    (again.parent / "train/videos/00003.mp4").write_bytes(b"")
    (again.parent / "val/images/00001.jpg").unlink()
    write_set(again.parent, videos=14, images=18, validation=12)
    assert content(again.parent) == wanted
    write_set(again.parent, videos=2, images=2, validation=3, seed=1)
    # With the index (Parquet, Arrow, hashes) and the recipe; nothing of the old seed is left.
    small = content(again.parent)
    assert len(small) == 2 + 2 + 3 + 1 + 4
    (again.parent / "recipe.json").write_text(json.dumps({"set": "shapes", "format": 3, "seed": 1}))
    clip = again.parent / "train/videos/00000.mp4"
    clip.write_bytes(bytes(clip.stat().st_size))
    monkeypatch.setattr(shapes, "_paint_files", shapes._paint_chunk)  # without starting processes
    write_set(again.parent, videos=2, images=2, validation=3, seed=1)
    assert content(again.parent) == small, "files in BT.601, of an older version, are painted anew"


def test_write_set_of_another_aspect_has_wide_files_and_replaces_the_square_ones(tmp_path: Path) -> None:
    square = content(write_set(tmp_path / "set", videos=2, images=2, validation=3).parent)
    index = write_set(tmp_path / "set", videos=2, images=2, validation=3, aspect=1.75)
    wide = content(index.parent)
    assert set(square) == set(wide) and square["train/videos/00000.mp4"] != wide["train/videos/00000.mp4"]
    for entry in (*Index(index, "train").videos, *Index(index, "val").videos):
        assert (entry.height, entry.width) == (128, 224) and read_video(entry.path, 17).shape == (17, 128, 224, 3)
    assert read_image(Index(index, "train").images[0].path).shape == (1, 128, 224, 3)
    assert json.loads((index.parent / "recipe.json").read_text())["aspect"] == 1.75
    assert "aspect" not in json.loads(square["recipe.json"]), "sets of older versions stay as they are"
    for aspect in (0.5, 1.01):
        with pytest.raises(ValueError, match="wanted an aspect of 1 or more that gives 128 rows an even number of columns"):
            write_set(tmp_path / "set", aspect=aspect)


def test_write_set_refuses_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(ValueError, match="not of the set shapes; give an empty folder"):
        write_set(tmp_path, videos=1, images=0, validation=3)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.mp4"]
    with pytest.raises(ValueError, match="got 0 videos"):
        write_set(tmp_path / "new", videos=0)


def test_remove_set_leaves_a_folder_that_can_be_painted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shapes"
    index = write_set(out, videos=2, images=0, validation=3)
    build_index(None, index, IndexOptions(again=True))
    doctor.write_report(doctor.diagnose(index, IndexOptions(), {}), index)
    doctor.write_use(index, "my.experiment", {}, [])
    Quarantine.beside(index).path.write_text("path,offset,begin,end,reason\n")
    assert {"index.report.csv", "index.my.experiment.csv", "index.sha256"} <= {file.name for file in out.iterdir()}
    other = tmp_path / "other"
    write_set(other, videos=1, images=0, validation=3)
    monkeypatch.chdir(other)
    main(["clean", "--run", str(tmp_path / "none"), "--data", f"{out},"])  # an empty name is not the current folder
    assert not out.exists() and other.exists()
    monkeypatch.chdir(tmp_path)
    write_set(out, videos=2, images=0, validation=3)
    main(["clean", "--run", str(tmp_path / "none"), "--data", f"{out},{other}"])
    assert not out.exists() and not other.exists()
    write_set(out, videos=2, images=0, validation=3)
    (out / "index.mine.csv").write_text("a,person's\n")
    assert remove_set(out) == [out / "index.mine.csv"]


PROGRAM = """
import sys
from pathlib import Path
from walt_pl.shapes.dataset import write_set
if __name__ == "__main__":
    write_set(Path(sys.argv[1]), videos=400, images=40, validation=30)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C to a process group")
def test_write_set_interrupted_leaves_whole_files_and_resumes(tmp_path: Path) -> None:
    out, program = tmp_path / "set", tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), str(out)]
    painter = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    limit = time.monotonic() + 180
    while len(list(out.rglob("*.mp4"))) < 20 and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(painter.pid, signal.SIGINT)
    painter.communicate(timeout=60)
    finished = {file: file.stat().st_mtime_ns for file in out.rglob("*.mp4")}
    assert painter.returncode != 0
    assert 20 <= len(finished) < 400 and not (out / "index.parquet").exists() and not list(out.rglob(".*.tmp"))
    for file in finished:
        assert len(read_video(file, 17)) == 17
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    assert len(Index(out / "index.parquet", "train").videos) == 400
    assert finished == {file: file.stat().st_mtime_ns for file in finished}


def test_write_set_deletes_no_file_that_a_strangers_index_names(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(written.parent, folder)
    (tmp_path / "mine.txt").write_text("important")
    (folder / "index.sha256").unlink()
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**rows[0], "path": "../mine.txt"}, *rows[1:]]), folder / "index.parquet")
    write_set(folder, videos=14, images=18, validation=12)
    assert (tmp_path / "mine.txt").read_text() == "important"
