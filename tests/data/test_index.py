"""The Parquet index of a data set."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from walt_pl.data.index import SCHEMA, Index, write_index


def row(number: int, **changes: object) -> dict[str, object]:
    clip = {"path": f"clips/{number}.mp4", "kind": "video", "frames": 17, "fps": 8.0, "width": 128, "height": 96}
    return {**clip, "caption": f"clip {number}", "label": -1, "split": "train", "bytes": 1000 + number, **changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    picture = row(3, path="a.png", kind="image", frames=1, fps=0.0, label=7)
    write_index([row(0), row(1), picture, row(2, split="val")], tmp_path / "index.parquet")
    return tmp_path / "index.parquet"


def test_entries_come_back_in_order_with_absolute_paths(path: Path) -> None:
    index = Index(path, "train")
    assert [entry.caption for entry in index.videos] == ["clip 0", "clip 1"]
    assert len(index.videos) == 2 and len(index.images) == 1
    clip, picture = index.videos[1], index.images[-1]
    assert clip.path == path.parent / "clips" / "1.mp4" and clip.path.is_absolute()
    assert (clip.frames, clip.fps, clip.width, clip.height, clip.label, clip.bytes) == (17, 8.0, 128, 96, -1, 1001)
    assert (picture.kind, picture.frames, picture.label, picture.split) == ("image", 1, 7, "train")
    assert len(Index(path, "val").videos) == 1 and len(Index(path, "val").images) == 0


def test_slices_and_ends_behave_like_a_list(path: Path) -> None:
    videos = Index(path, "train").videos
    assert [entry.caption for entry in videos[::-1]] == ["clip 1", "clip 0"]
    assert len(videos[5:]) == 0 and videos[-2].caption == "clip 0"
    for number in (2, -3):
        with pytest.raises(IndexError):
            videos[number]


def test_same_rows_give_the_same_hash_and_others_another(path: Path, tmp_path: Path) -> None:
    rows = [row(0), row(1)]
    write_index(rows, tmp_path / "one")
    write_index(rows, tmp_path / "two")
    write_index(rows[::-1], tmp_path / "other")
    one, two, other = (Index(tmp_path / name, "train").sha256 for name in ("one", "two", "other"))
    assert one == two != other


def test_missing_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="python -m walt_pl index shapes --out data/shapes"):
        Index(tmp_path / "index.parquet", "train")


def test_empty_split_lists_those_that_exist(path: Path) -> None:
    with pytest.raises(ValueError, match=r'nothing in split "test" \(splits found: train, val\)'):
        Index(path, "test")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.mp4"], "split": ["train"]}), tmp_path / "index.parquet")
    with pytest.raises(ValueError, match=r"no column kind, frames, .* \(found: path, split\)"):
        Index(tmp_path / "index.parquet", "train")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.parquet").write_text("path,caption\n")
    with pytest.raises(ValueError, match="not a Parquet file"):
        Index(tmp_path / "index.parquet", "train")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({name: value for name, value in row(0).items() if name != "caption"}, "entry 0: wanted the columns"),
        (row(0, kind="film"), 'kind must be "video" or "image", found "film"'),
        (row(0, path="/somewhere/a.mp4"), "path must be relative"),
        (row(0, frames="many"), "wrong type"),
    ],
)
def test_wrong_rows_are_refused_and_the_old_index_stays(path: Path, entry: dict[str, object], message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        write_index([entry], path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: pa.Table, file: Path) -> None:
        file.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("walt_pl.data.index.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_index([row(9)], path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_rows_stay_in_the_table(path: Path) -> None:
    assert Index(path, "train").videos[0] is not Index(path, "train").videos[0]
    assert pq.read_schema(path).equals(SCHEMA)
