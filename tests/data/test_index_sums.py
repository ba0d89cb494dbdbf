"""Damage of an index: a flipped bit gives no other rows, and a crafted file no crash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.joint import JointData
from tests.data.test_index import row
from walt_pl.data.index import Index, class_names, write_index
from walt_pl.data.index_arrow import check_index
from walt_pl.data.index_sums import Sums, read_sums, write_sums
from walt_pl.data.index_table import LARGE, read_parquet, read_table
from walt_pl.indexing.build_index import build_index
from walt_pl.lock import hold_lock, lock_beside


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_index([row(number, caption=f"caption {number}" * 9) for number in range(40)], tmp_path / "index.parquet")
    return tmp_path / "index.parquet"


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << position % 8
    file.write_bytes(data)


def captions(path: Path) -> list[str]:
    return list(Index(path, "train").videos.column("caption").to_pylist())


def test_sha256_file_is_one_of_sha256sum(path: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "index.sha256"], cwd=path.parent, check=True)
    assert len(path.with_suffix(".sha256").read_text().splitlines()) == 2


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_index_with_a_flipped_bit_in_the_arrow_file_is_made_again_with_a_message(path: Path, share: float) -> None:
    arrow, wanted = path.with_suffix(".arrow"), captions(path)
    whole = arrow.read_bytes()
    flip(arrow, int(share * len(whole)))
    with pytest.warns(UserWarning, match=r"index\.arrow is not as it was written \(SHA-256\): it is made again from the Parquet file"):
        assert captions(path) == wanted
    assert arrow.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:.*made again")
def test_index_with_a_flipped_bit_in_the_schema_of_the_arrow_file_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
    arrow, wanted = path.with_suffix(".arrow"), captions(path)
    whole = arrow.read_bytes()
    keys = [whole.index(b"slices"), whole.rindex(b"slices"), whole.rindex(b"sha256")]
    for position in [*keys, *range(len(whole) - 1600, len(whole), 20)]:
        flip(arrow, position)
        assert captions(path) == wanted
        assert arrow.read_bytes() == whole, f"byte {position}"
    flip(arrow, keys[1])
    write_index([row(0, caption="new")], path)
    assert captions(path) == ["new"]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_index_with_a_flipped_bit_in_the_parquet_file_is_refused_with_the_command(path: Path, share: float) -> None:
    flip(path, int(share * path.stat().st_size))
    starts: list[Callable[[], object]] = [
        lambda: Index(path, "train"),
        lambda: read_table(path),
        lambda: build_index(None, path),
        lambda: JointData(str(path), size=32, val_videos=0).setup("fit"),
    ]
    for start in starts:
        with pytest.raises(ValueError, match=rf"{path} is damaged: .*\n  Make it again: remove it, and type .* index SOURCE --out {path}"):
            start()


def test_index_that_is_handed_around_without_its_hashes_is_read_and_gets_them(path: Path) -> None:
    wanted = captions(path)
    for name in ("index.arrow", "index.sha256"):
        path.with_name(name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captions(path) == wanted
    flip(path, 500)
    with pytest.raises(ValueError, match="is damaged"):
        Index(path, "train")


def test_index_without_hashes_finds_a_flipped_bit_in_a_page(path: Path) -> None:
    path.with_suffix(".sha256").unlink()
    metadata = pq.ParquetFile(path).metadata.row_group(0).column(6)
    flip(path, metadata.dictionary_page_offset + 60)
    with pytest.raises(ValueError, match=r"CRC.* make it again: python -m walt_pl index SOURCE"):
        Index(path, "train")


def test_index_with_a_damaged_file_of_hashes_names_it(path: Path) -> None:
    path.with_suffix(".sha256").write_text("words index.parquet\n")
    with pytest.raises(ValueError, match=r"index\.sha256 is damaged .*words.*; remove it"):
        Index(path, "train")
    path.with_suffix(".sha256").unlink()
    os.mkfifo(path.with_suffix(".sha256"))
    with pytest.raises(ValueError, match=r"index\.sha256 is damaged .*not a plain file"):
        Index(path, "train")


@pytest.mark.parametrize("mine", [f"{'0' * 64}  index.parquet\n{'1' * 64}  a.mp4\n", "words\n", f"{'0' * 64}  index.parquet\n" * 1000])
def test_index_beside_hashes_of_a_person_leaves_them(path: Path, monkeypatch: pytest.MonkeyPatch, mine: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
    wanted, sums, whole = captions(path), path.with_suffix(".sha256"), path.read_bytes()
    sums.write_text(mine)
    path.with_suffix(".arrow").unlink()
    with pytest.warns(UserWarning, match=r"index\.sha256 has other hashes than those of an index: .* is read without them"):
        assert captions(path) == wanted
    for write in (lambda: write_index([row(0, caption="new")], path), lambda: build_index(None, path)):
        with pytest.raises(FileExistsError, match=r"move it away or name the index otherwise"):
            write()
    assert (sums.read_text(), path.read_bytes()) == (mine, whole)
    assert not path.with_suffix(".arrow").exists()


def test_write_index_killed_before_or_behind_the_rename_leaves_a_valid_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace = captions(path), os.replace

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for place, wanted in (("files.os.replace", None), ("data.index.write_arrow", ["new"])):
        with monkeypatch.context() as patched:
            if wanted is None:  # the hashes are replaced, the Parquet file is not
                patched.setattr("walt_pl.files.os.replace", lambda old, new: die() if str(new).endswith(".parquet") else replace(old, new))
            else:
                patched.setattr(f"walt_pl.{place}", die)
            with pytest.raises(KeyboardInterrupt):
                write_index([row(0, caption="new")], path)
        assert captions(path) == (wanted or before)


def write_arrow(path: Path, columns: dict[str, pa.Array], slices: str) -> None:
    """Write an Arrow file with the right hashes, as a stranger may."""
    schema = LARGE.with_metadata({"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "slices": slices})
    arrow = path.with_suffix(".arrow")
    with pa.ipc.new_file(str(arrow), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([columns[name] for name in LARGE.names], schema=schema))
    write_sums(path, Sums(read_sums(path).parquet, hashlib.sha256(arrow.read_bytes()).hexdigest()))


def _columns(path: Path) -> dict[str, pa.Array]:
    table = read_table(path)
    return {name: table[name].combine_chunks() for name in LARGE.names}


def _offsets(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    numbers = [0, *(number << 40 for number in range(39)), 5]  # pyarrow's quick check looks at the first and the last
    offsets = pa.py_buffer(b"".join(number.to_bytes(8, "little") for number in numbers))
    return {**columns, "caption": pa.Array.from_buffers(pa.large_string(), 40, [None, offsets, pa.py_buffer(b"words")])}


GOOD = '{"train": {"video": [0, 40], "image": [40, 40]}}'
CRAFTED: dict[str, tuple[Callable[[dict[str, pa.Array]], dict[str, pa.Array]], str]] = {
    "offsets": (_offsets, GOOD),
    "no UTF-8": (lambda columns: {**columns, "caption": pa.array([b"\xff"] * 40).cast(pa.large_binary()).view(pa.large_string())}, GOOD),
    "null": (lambda columns: {**columns, "width": pa.array([None] * 40, pa.int32())}, GOOD),
    "absolute path": (lambda columns: {**columns, "path": pa.array(["/etc/passwd"] * 40, pa.large_string())}, GOOD),
    "null byte": (lambda columns: {**columns, "path": pa.array(["a\0b"] * 40, pa.large_string())}, GOOD),
    "not a number": (lambda columns: {**columns, "fps": pa.array([float("nan")] * 40, pa.float32())}, GOOD),
    "negative": (lambda columns: {**columns, "height": pa.array([-5] * 40, pa.int32())}, GOOD),
    "slices past the end": (lambda columns: columns, GOOD.replace("40", "4000")),
    "slices of a part": (lambda columns: columns, GOOD.replace("40", "39")),
    "slices of words": (lambda columns: columns, '{"train": "all"}'),
    "slices nested": (lambda columns: columns, "[" * 100_000),
    "slices 10^30": (lambda columns: columns, GOOD.replace("[0", f"[-{10**30}")),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_index_replaces_a_crafted_arrow_file(path: Path, name: str) -> None:
    wanted = captions(path)
    change, slices = CRAFTED[name]
    write_arrow(path, change(_columns(path)), slices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert captions(path) == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was made again
        assert captions(path) == wanted


def test_index_entries_map_the_checked_file_without_a_second_check(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(Index(path, "train").videos)

    def check(*_: object) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr("walt_pl.data.index_arrow._check_rows", check)
    monkeypatch.setattr("walt_pl.data.index_arrow.hashlib.sha256", check)
    assert len(pickle.loads(data)) == 40


def test_check_index_keeps_the_parquet_file_and_makes_the_rest_again(path: Path) -> None:
    whole = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for name in ("index.arrow", "index.sha256"):
        path.with_name(name).unlink()
    assert check_index(path) == hashlib.sha256(whole["index.parquet"]).hexdigest()
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == whole


def _write_after_reading(path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool) -> threading.Thread:
    """Let another process write the index as soon as its Parquet file has been read."""

    def write() -> None:
        with hold_lock(lock_beside(path), work="index") if locked else contextlib.nullcontext():
            write_index([row(0, caption="new")], path)

    writer = threading.Thread(target=write)

    def read(of: Path) -> pa.Table:
        table = read_parquet(of)
        writer.start()
        writer.join(1 if locked else 30)  # without the lock it is done by then
        return table

    monkeypatch.setattr("walt_pl.data.index_arrow.read_parquet", read)
    path.with_suffix(".arrow").unlink()
    return writer


def test_index_that_is_written_while_a_start_maps_it_stays_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_table(path)["caption"].to_pylist()
    writer = _write_after_reading(path, monkeypatch, locked=True)
    assert captions(path) == before
    writer.join(30)
    assert captions(path) == ["new"]


def test_index_that_is_written_without_the_lock_while_a_start_maps_it_stays_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_after_reading(path, monkeypatch, locked=False)
    with pytest.raises(ValueError, match="was written again while it was read: start anew"):
        captions(path)
    assert captions(path) == ["new"]


def test_index_whose_hashes_are_replaced_while_a_start_compares_them_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(of: Path) -> Sums:
        monkeypatch.undo()
        write_index([row(0, caption="new")], of)
        return read_sums(of)

    monkeypatch.setattr("walt_pl.data.index_sums.read_sums", replace)
    assert captions(path) == ["new"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": float("inf")}, r"entry 3: fps must be a number from 0, found"),
        ({"width": -1}, r"entry 3: width must be a number from 0, found .-1"),
        ({"path": "a\0.mp4"}, "entry 3: path must be relative"),
        ({"path": ""}, "entry 3: path must be relative"),
        ({"label": 10**10}, "label has a wrong type"),
    ],
)
def test_index_refuses_impossible_values_of_a_parquet_file(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows = [row(0), row(1), row(2), row(3, **change)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        Index(tmp_path / "a.parquet", "train")


@pytest.mark.parametrize("name", ["path", "frames", "duration"])
def test_index_refuses_a_column_that_is_there_twice(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_pylist([row(0), row(1)])
    if name not in table.column_names:
        table = table.append_column(name, pa.array([1.0, 1.0]))
    pq.write_table(table.append_column(name, table[name]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"column {name} is there more than once"):
        Index(tmp_path / "a.parquet", "train")


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"\xff", "x", True, 10**18], ids=str)
@pytest.mark.parametrize("name", ["path", "frames", "variable_rate", "begin"])
def test_index_of_columns_of_other_types_raises_value_error_or_reads(tmp_path: Path, name: str, value: object) -> None:
    table = pa.Table.from_pylist([row(0)])
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, pa.array([value])), tmp_path / "a.parquet")
    try:
        Index(tmp_path / "a.parquet", "train")
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / 'a.parquet'}: ")


def test_class_names_refuses_what_is_no_small_text(path: Path) -> None:
    names = path.with_suffix(".classes.txt")
    names.write_bytes("walk\r\na\u2028b\nrun".encode())
    assert class_names(path) == ["walk", "a\u2028b", "run"]
    names.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="wanted a text with the name of a class in each line"):
        class_names(path)
    names.unlink()
    os.mkfifo(names)
    with pytest.raises(ValueError, match="not a plain file"):
        class_names(path)
    names.unlink()
    names.symlink_to(names)
    with pytest.raises(ValueError, match="not a plain file"):
        class_names(path)


def test_index_sums_of_a_name_with_a_line_separator_are_our_own(tmp_path: Path) -> None:
    path = tmp_path / "a\u2028b.parquet"
    for number in range(2):
        write_index([row(number)], path)
    assert captions(path) == captions(path) and len(read_sums(path).parquet) == 1
