"""The index of a data set: Parquet, and the same rows mapped as Arrow."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.index_memory import measure, synthetic
from walt_pl.data.index import Index, IndexEntries, write_index, write_table
from walt_pl.data.index_table import SCHEMA


def row(number: int, **changes: object) -> dict[str, object]:
    clip = {"path": f"clips/{number}.mp4", "kind": "video", "frames": 17, "fps": 8.0, "width": 128, "height": 96}
    return {**clip, "caption": f"clip {number}", "label": -1, "split": "train", "bytes": 1000 + number, **changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    picture = row(3, path="a.png", kind="image", frames=1, fps=0.0, label=7)
    write_index([row(0), row(1), picture, row(2, split="val")], tmp_path / "index.parquet")
    return tmp_path / "index.parquet"


def test_index_returns_entries_in_order_with_absolute_paths(path: Path) -> None:
    index = Index(path, "train")
    assert [entry.caption for entry in index.videos] == ["clip 0", "clip 1"]
    assert len(index.videos) == 2 and len(index.images) == 1
    clip, picture = index.videos[1], index.images[-1]
    assert clip.path == path.parent / "clips" / "1.mp4" and clip.path.is_absolute()
    assert (clip.frames, clip.fps, clip.width, clip.height, clip.label, clip.bytes) == (17, 8.0, 128, 96, -1, 1001)
    assert (picture.kind, picture.frames, picture.label, picture.split) == ("image", 1, 7, "train")
    assert len(Index(path, "val").videos) == 1 and len(Index(path, "val").images) == 0


def test_index_entries_slice_like_a_list(path: Path) -> None:
    videos = Index(path, "train").videos
    assert [entry.caption for entry in videos[::-1]] == ["clip 1", "clip 0"]
    assert len(videos[5:]) == 0 and videos[-2].caption == "clip 0"
    for number in (2, -3):
        with pytest.raises(IndexError):
            videos[number]


def test_index_sha256_is_equal_for_equal_rows_only(path: Path, tmp_path: Path) -> None:
    rows = [row(0), row(1)]
    write_index(rows, tmp_path / "one")
    write_index(rows, tmp_path / "two")
    write_index(rows[::-1], tmp_path / "other")
    one, two, other = (Index(tmp_path / name, "train").sha256 for name in ("one", "two", "other"))
    assert one == two != other


def test_index_missing_names_the_command(tmp_path: Path) -> None:
    made_with = rf"index SOURCE --out {tmp_path}/index.parquet .*python -m walt_pl index shapes --out data/shapes"
    with pytest.raises(ValueError, match=made_with):
        Index(tmp_path / "index.parquet", "train")


def test_index_empty_split_lists_the_splits_that_exist(path: Path) -> None:
    with pytest.raises(ValueError, match=r'nothing in split "test" \(splits found: train, val\)'):
        Index(path, "test")


def test_index_without_val_split_says_how_to_get_one(tmp_path: Path) -> None:
    write_index([row(0)], tmp_path / "index.parquet")
    with pytest.raises(ValueError, match=r'split "val" .*; index again and train anew, .*--allow-moves.*, or set --data.val_videos 0$'):
        Index(tmp_path / "index.parquet", "val")


def test_index_names_missing_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.mp4"], "split": ["train"]}), tmp_path / "index.parquet")
    with pytest.raises(ValueError, match=r"no column kind, frames, .* \(found: path, split\)"):
        Index(tmp_path / "index.parquet", "train")


def test_index_refuses_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "index.parquet").write_text("path,caption\n")
    with pytest.raises(ValueError, match="not a Parquet file"):
        Index(tmp_path / "index.parquet", "train")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({name: value for name, value in row(0).items() if name != "caption"}, "entry 0: wanted the columns"),
        (row(0, kind="film"), 'kind must be "video" or "image", found "film"'),
        (row(0, path="/somewhere/a.mp4"), "path must be relative"),
        (row(0, path="C:\\clips\\a.mp4"), "path must be relative"),
        (row(0, frames="many"), "wrong type"),
        (row(0, split=None), "entry 0: no split"),
    ],
)
def test_write_index_refuses_wrong_rows_and_keeps_the_old_index(path: Path, entry: dict[str, object], message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        write_index([entry], path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.arrow", "index.parquet", "index.sha256"]


def test_write_index_failed_write_keeps_the_old_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: pa.Table, file: Path, **options: object) -> None:
        file.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("walt_pl.data.index.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_index([row(9)], path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.arrow", "index.parquet", "index.sha256"]


def test_write_index_writes_the_columns_of_the_schema(path: Path) -> None:
    assert pq.read_schema(path).equals(SCHEMA)
    table = pq.read_table(path)
    assert table["offset"].to_pylist() == [-1] * 4 and table["decoder"].to_pylist() == [""] * 4


def test_index_every_column_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "DATA.md").read_text(encoding="utf-8")
    assert not [name for name in SCHEMA.names if f"| `{name}` |" not in text]


def test_write_index_sorts_rows_by_split_and_kind_and_keeps_their_order(tmp_path: Path) -> None:
    kinds = [("val", "image"), ("train", "video"), ("train", "image"), ("val", "video"), ("train", "video"), ("train", "image")]
    write_index([row(number, split=split, kind=kind) for number, (split, kind) in enumerate(kinds)], tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["path"].to_pylist() == [f"clips/{number}.mp4" for number in (1, 4, 2, 5, 3, 0)]
    train = Index(tmp_path / "a.parquet", "train")
    assert [entry.caption for entry in train.videos] == ["clip 1", "clip 4"] and [entry.caption for entry in train.images] == [
        "clip 2",
        "clip 5",
    ]


def test_index_entries_column_is_a_view_of_the_mapped_file(path: Path) -> None:
    videos = Index(path, "train").videos
    frames, sizes = videos.column("frames"), videos[1:].column("bytes")
    assert frames.tolist() == [17, 17] and sizes.tolist() == [1001]
    for values in (frames, sizes):
        assert not values.flags.owndata and not values.flags.writeable
    assert np.shares_memory(videos.column("bytes"), sizes), "a slice costs no copy"
    assert videos.column("path").to_pylist() == ["clips/0.mp4", "clips/1.mp4"], "as written in the file"
    assert videos[::-1].column("bytes").tolist() == [1001, 1000] and videos.column("variable_rate").tolist() == [False, False]
    with pytest.raises(KeyError):
        videos.column("colour")


def many(folder: Path, rows: int) -> Path:
    numbers = range(rows)
    same = {name: [value] * rows for name, value in row(0).items()}
    columns = {**same, "path": [f"clips/{number}.mp4" for number in numbers], "bytes": list(numbers)}
    pq.write_table(pa.table(columns), folder / "many.parquet")
    return folder / "many.parquet"


def test_index_entries_are_pickled_as_a_path(tmp_path: Path) -> None:
    videos = Index(many(tmp_path, 50_000), "train").videos[10_000:40_000]
    data = pickle.dumps({"videos": videos, "again": videos[5:]})
    assert len(data) < 2000
    program = (
        "import pickle, sys; e = pickle.load(sys.stdin.buffer); print(len(e['videos']), e['videos'][7].path, e['again'].column('bytes')[0])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert said.stdout.decode().split() == ["30000", str(tmp_path / "clips" / "10007.mp4"), "10005"]


def test_index_without_arrow_file_writes_one(path: Path) -> None:
    arrow = path.with_suffix(".arrow")
    whole = arrow.read_bytes()
    arrow.unlink()
    assert [entry.caption for entry in Index(path, "train").videos] == ["clip 0", "clip 1"]
    assert arrow.read_bytes() == whole


@pytest.mark.parametrize("harm", ["other rows", "cut", "words", "old schema"])
def test_index_replaces_an_arrow_file_that_is_not_its_own(path: Path, tmp_path: Path, harm: str) -> None:
    arrow = path.with_suffix(".arrow")
    whole = arrow.read_bytes()
    if harm == "other rows":  # younger than the Parquet file, and as well formed
        write_index([row(8), row(9)], tmp_path / "other.parquet")
        os.replace(tmp_path / "other.arrow", arrow)
    elif harm == "old schema":
        old = pa.schema([("path", pa.string())], metadata={"sha256": Index(path, "train").sha256, "slices": "{}"})
        with pa.ipc.new_file(str(arrow), old) as writer:
            writer.write_batch(pa.record_batch([["a.mp4"]], schema=old))
    else:
        arrow.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"words " * 99)
    assert [entry.caption for entry in Index(path, "train").videos] == ["clip 0", "clip 1"]
    assert arrow.read_bytes() == whole


def test_index_in_a_read_only_folder_keeps_its_arrow_file_in_the_user_cache(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import walt_pl.data.index_arrow as module

    path.with_suffix(".arrow").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = module.whole_file

    def refuse(file: Path) -> AbstractContextManager[Path]:
        if file.parent == path.parent:
            raise PermissionError(13, "Permission denied", str(file))
        return write(file)

    monkeypatch.setattr(module, "whole_file", refuse)
    for _ in range(2):
        assert [entry.caption for entry in Index(path, "val").videos] == ["clip 2"]
        monkeypatch.setattr(module, "read_parquet", None)  # the second time it is mapped from the cache
    assert not path.with_suffix(".arrow").exists() and len(list((tmp_path / "cache").rglob("*.arrow"))) == 1


def test_index_entries_unpickled_after_a_rewrite_raise(path: Path) -> None:
    videos = Index(path, "train").videos
    before = pickle.dumps(videos)
    write_index([row(7), row(8)], path)
    for data in (before, pickle.dumps(videos)):
        with pytest.raises(ValueError, match="written again meanwhile"):
            pickle.loads(data)


def test_index_entries_held_open_outlive_a_rewrite(path: Path) -> None:
    videos = Index(path, "train").videos
    write_index([row(7)], path)
    assert [entry.caption for entry in videos] == ["clip 0", "clip 1"]


def test_index_reads_parquet_of_other_programs(tmp_path: Path) -> None:
    same = row(0)
    rows = [{**same, "caption": None, "label": None, "split": "val"}, {**same, "path": "b.mp4"}]
    table = pa.Table.from_pylist(rows)  # int64 and double, nulls, none of the columns with defaults, not sorted
    pq.write_table(table, tmp_path / "a.parquet")
    clip = Index(tmp_path / "a.parquet", "val").videos[0]
    assert (clip.caption, clip.label, clip.decoder, clip.offset, clip.fps) == ("", -1, "", -1, 8.0)
    assert Index(tmp_path / "a.parquet", "train").videos[0].path == tmp_path / "b.mp4"


def test_index_opens_without_reading_rows_into_memory(tmp_path: Path) -> None:
    Index(many(tmp_path, 50_000), "train")
    before = pa.total_allocated_bytes()
    index = Index(tmp_path / "many.parquet", "train")
    assert isinstance(index.videos, IndexEntries) and index.videos[49_999].bytes == 49_999
    assert pa.total_allocated_bytes() - before < 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rows", [300_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_index_costs_a_worker_no_memory_of_its_own(tmp_path: Path, rows: int) -> None:
    write_table(synthetic(rows), tmp_path / "index.parquet")
    cost = measure(tmp_path / "index.parquet")
    assert (tmp_path / "index.arrow").stat().st_size > 180 * rows
    assert cost["own"] < 20e6


def test_index_keeps_several_captions_and_shares_them_with_workers(tmp_path: Path) -> None:
    write_index([row(0, more_captions=["a", "b"]), row(1), row(2, split="val", more_captions=["c"])], tmp_path / "a.parquet")
    videos = Index(tmp_path / "a.parquet", "train").videos
    assert [entry.more_captions for entry in pickle.loads(pickle.dumps(videos))] == [("a", "b"), ()]
    assert videos.column("more_captions").to_pylist() == [["a", "b"], []] and videos[1:].column("more_captions").to_pylist() == [[]]
    assert Index(tmp_path / "a.parquet", "val").videos[0].more_captions == ("c",)
    (tmp_path / "a.arrow").unlink()
    assert Index(tmp_path / "a.parquet", "train").videos[0].more_captions == ("a", "b"), "from the Parquet file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more_captions": ["a", None]}, "entry 1: more_captions must be texts, none of them empty"),
        ({"more_captions": [""]}, "entry 1: more_captions must be texts, none of them empty"),
        ({"more_captions": ["a"] * 1000}, "entry 1: a clip has at most 1,000 captions"),
        ({"more_captions": ["a"], "caption": ""}, "entry 1: more_captions are those beside caption, which is empty"),
    ],
)
def test_index_refuses_captions_that_no_draw_can_use(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_index([row(0, more_captions=["b"]), row(1, **changes)], tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([row(0, more_captions=["b"]), row(1, **changes)]), tmp_path / "b.parquet")  # of another program
    with pytest.raises(ValueError, match=message):
        Index(tmp_path / "b.parquet", "train")


def test_index_reads_lists_of_captions_of_other_programs(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row(0, more_captions=["a"]), row(1, more_captions=None)]), tmp_path / "a.parquet")
    assert [entry.more_captions for entry in Index(tmp_path / "a.parquet", "train").videos] == [("a",), ()]
    for changes in ({"more_captions": "a"}, {"caption": ["a", "b"]}):
        name = next(iter(changes))
        pq.write_table(pa.Table.from_pylist([row(0, **changes)]), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=f"column {name} has a wrong type"):
            Index(tmp_path / f"{name}.parquet", "train")
