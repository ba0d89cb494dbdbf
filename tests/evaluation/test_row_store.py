"""Rows on disk: damaged or foreign files are told and computed again, and commands at once do not disturb each other."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from walt_pl.evaluation.row_store import DamagedRowsError, RowStore, StoredRows


def block(numbers: range, width: int = 3) -> StoredRows:
    rows = torch.tensor([[float(n)] * width for n in numbers])
    return StoredRows({"features": rows}, torch.ones(len(numbers), dtype=torch.bool), {}, 1.5)


def store(root: Path, key: str = "one", batch: int = 4) -> RowStore:
    made = RowStore(root, {"source": key}, 10, batch, ("features",))
    made.prepare()
    return made


def filled(root: Path, key: str = "one", batch: int = 4) -> RowStore:
    made = store(root, key, batch)
    for number in made.missing(range(len(made))):
        made.write_block(number, block(made.block(number)))
    return made


def test_row_store_joins_blocks_in_order_into_one_file(tmp_path: Path) -> None:
    made = filled(tmp_path)
    made.join()
    read = store(tmp_path).read()
    assert read.rows["features"].tolist() == [[float(n)] * 3 for n in range(10)] and read.kept.all() and read.seconds == 4.5
    assert sorted(path.name for path in made.folder.iterdir()) == ["description.json", "rows.safetensors"]
    described = json.loads((made.folder / "description.json").read_text())
    assert described["key"] == {"source": "one"} and "may be removed" in described["about"]
    assert load_file(made.joined)["kept"].tolist() == [1] * 10, "any reader of safetensors reads it"


def test_row_store_joins_blocks_of_which_no_clip_was_read(tmp_path: Path) -> None:
    made = filled(tmp_path)
    made.write_block(0, StoredRows({"features": torch.zeros(4, 0)}, torch.zeros(4, dtype=torch.bool), {i: f"f{i}" for i in range(4)}, 0))
    made.join()
    read = made.read()
    assert read.kept.tolist() == [False] * 4 + [True] * 6 and read.reasons == {0: "f0", 1: "f1", 2: "f2"}
    assert read.rows["features"][:5].tolist() == [[0.0] * 3] * 4 + [[4.0] * 3]


@pytest.mark.parametrize("joined", [False, True])
def test_row_store_tries_clips_again_in_the_next_command_alone(tmp_path: Path, joined: bool) -> None:
    """Two processes agree on the blocks, and the others stay as they are."""

    def part(positions: range, failed: int) -> StoredRows:
        whole = block(positions)
        kept = torch.tensor([position != failed for position in positions])
        return StoredRows({"features": whole.rows["features"] * kept[:, None]}, kept, {failed % 4: "lost"}, 1.5)

    first = filled(tmp_path)
    first.write_block(1, part(range(4, 8), 6))
    if joined:
        first.join()
        assert first.is_joined() and first.read().reasons == {6: "lost"}
    ranks = [store(tmp_path) for _ in range(2)]
    assert [rank.missing(range(at, 3, 2)) for at, rank in enumerate(ranks)] == [[], [1]] and not ranks[0].is_joined()
    ranks[1].write_block(1, part(range(4, 8), 5))
    ranks[0].join()
    assert [rank.is_joined() for rank in ranks] == [True, True], "tried once"
    assert ranks[1].read().kept.tolist() == [position != 5 for position in range(10)] and ranks[1].read().reasons == {5: "lost"}
    last = store(tmp_path, batch=5)
    assert last.missing(range(2)) == [1]
    last.write_block(1, block(range(5, 10)))
    assert store(tmp_path, batch=5).missing(range(2)) == [], "killed before it joined"
    last.join()
    read = last.read()
    assert read.kept.all() and not read.reasons and read.rows["features"][:, 0].tolist() == list(range(10))
    assert store(tmp_path).missing(range(3)) == []


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "nan", "shape", "key", "link", "pipe", "mask", "reasons", "names"])
def test_row_store_computes_damaged_and_foreign_files_again(tmp_path: Path, damage: str, joined: bool) -> None:
    made = filled(tmp_path)
    if joined:
        made.join()
    path = made.joined if joined else made.folder / "blocks" / "b4-00000001.safetensors"
    data, tensors = path.read_bytes(), load_file(path)
    metadata = {"key": made.digest, "reasons": "{}"}
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        at = data.index(tensors["features"].numpy().tobytes())
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        if damage == "nan":
            tensors["features"][1, 1] = torch.nan
        elif damage == "shape":
            tensors["features"] = tensors["features"][1:].clone()
        elif damage == "mask":
            tensors["kept"] = tensors["kept"][1:].clone()
        elif damage == "names":
            tensors["more"] = torch.zeros(1)
        metadata |= {"key": {"key": "0" * 64}, "reasons": {"reasons": "[1"}}.get(damage, {})
        save_file(tensors, path, metadata)
    with pytest.warns(UserWarning, match=rf"{path.name}.*: its clips are read again") as told:
        assert store(tmp_path).missing(range(3)) == ([0, 1, 2] if joined else [1])
    assert len(told) == 1 and "\n" not in str(told[0].message)
    with pytest.warns(UserWarning):
        repaired = filled(tmp_path)
    repaired.join()
    assert repaired.read().rows["features"][:, 0].tolist() == list(range(10))


def test_row_store_refuses_to_join_before_all_blocks_are_there(tmp_path: Path) -> None:
    made = filled(tmp_path)
    (made.folder / "blocks" / "b4-00000002.safetensors").unlink()
    with pytest.raises(DamagedRowsError, match="give the same command again"):
        made.join()
    assert not made.joined.exists()


def test_row_store_of_two_commands_at_once(tmp_path: Path) -> None:
    """One command is in its second block while the other, with blocks of another size, joins and removes all blocks."""
    slow = store(tmp_path)
    slow.write_block(0, block(slow.block(0)))
    fast = filled(tmp_path, batch=5)
    fast.join()
    whole = fast.joined.read_bytes()
    assert slow.is_joined()
    slow.write_block(1, block(slow.block(1)))
    slow.join()
    assert fast.joined.read_bytes() == whole and not (fast.folder / "blocks").exists() and fast.read().kept.all()
    other = store(tmp_path, "two")
    assert other.folder != fast.folder and other.missing(range(3)) == [0, 1, 2]


def test_row_store_survives_the_removal_of_the_block_that_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path)
    made.join()

    def lose(path: Path, data: bytes) -> None:
        raise FileNotFoundError(str(path))

    monkeypatch.setattr("walt_pl.evaluation.row_store.write_whole", lose)
    made.write_block(1, block(made.block(1)))
    with pytest.raises(FileNotFoundError):
        RowStore(tmp_path, {"source": "three"}, 10, 4, ("features",)).write_block(1, block(range(4, 8)))


def test_row_store_removes_only_its_own_blocks(tmp_path: Path) -> None:
    made = filled(tmp_path)
    foreign = made.folder / "blocks" / "notes.txt"
    foreign.write_text("mine")
    left = made.folder / "blocks" / ".b4-00000000.safetensors.1.tmp"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    store(tmp_path)
    assert not left.exists(), "left by a killed process"
    made.join()
    assert foreign.read_text() == "mine" and list(foreign.parent.iterdir()) == [foreign]


def test_row_store_knows_clips_by_their_hash_and_not_by_their_place(tmp_path: Path) -> None:
    array = {"kind": "array", "path": "a.npy", "sha256": "0"}
    run = {"run": "runs/a", "artifacts": {"vae": {"sha256": "1"}}, "conditions": {"of": {"path": "a.parquet", "index_sha256": "2"}}}
    folder = {"path": "a", "names_sizes_and_times_sha256": "3"}

    def digest(**key: Any) -> str:
        return RowStore(tmp_path, key, 1, 1, ("features",)).digest

    moved = {**run, "run": "/else/a", "conditions": {"of": {"path": "/else/a.parquet", "index_sha256": "2"}}}
    other = {**run, "conditions": {"of": {"path": "a.parquet", "index_sha256": "4"}}}
    assert digest(source=array) == digest(source={**array, "path": "/else/a.npy"}) != digest(source={**array, "sha256": "5"})
    assert digest(source=run) == digest(source=moved) != digest(source=other)
    assert digest(source=folder) != digest(source={**folder, "path": "b"}), "no hash of the bytes"
