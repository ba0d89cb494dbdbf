"""Rows keep the split that they have, unless a person allows the move."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.sources import shard, touch
from walt_pl.data.index import MediaKey, write_table
from walt_pl.data.index_table import read_table
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import BuildReport, IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.probe_file import MediaFacts


@pytest.fixture(autouse=True)
def examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each file for a sound clip: splits do not depend on what is in it."""
    monkeypatch.setattr(
        building,
        "run_isolated",
        lambda function, jobs, *rest: ((job, [MediaFacts(job.bytes, job.modified, 9) for _ in job.pieces]) for job in jobs),
    )


def build(source: Path, fold: int = 1, **options: object) -> BuildReport:
    out = source.parent / "i.parquet" if source.is_file() or source.name == "set" else source / "i.parquet"
    return build_index(list_source(str(source), fold=fold), out, IndexOptions(**options))  # type: ignore[arg-type]


def splits(index: Path) -> dict[str, str]:
    table = read_table(index)
    return dict(zip(table["path"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    touch(tmp_path / "set", *(f"{number}.png" for number in range(60)))
    return tmp_path / "set"


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.2), (0.2, 0.0), (0.2, 0.5), (0.5, 0.2)])
def test_build_index_refuses_to_move_clips_when_val_changes_and_counts_them(pictures: Path, first: float, second: float) -> None:
    out = pictures.parent / "i.parquet"
    build(pictures, val=first)
    before, written = splits(out), out.read_bytes()
    build_index(list_source(str(pictures)), pictures.parent / "other.parquet", IndexOptions(val=second))
    wanted = splits(pictures.parent / "other.parquet")
    moved = [path for path in before if before[path] != wanted[path]]
    there = "from train to val" if first < second else "from val to train"
    with pytest.raises(ValueError, match=rf"(?s)i\.parquet: .*\n  {len(moved)} would move {there}, the first: set/.*--allow-moves"):
        build(pictures, val=second)
    assert out.read_bytes() == written and not (pictures.parent / ".i.parquet.journal").exists()
    build(pictures, val=second, allow_moves=True)
    assert splits(out) == wanted


def test_build_index_adds_new_clips_with_the_same_val(pictures: Path) -> None:
    build(pictures, val=0.2)
    before = splits(pictures.parent / "i.parquet")
    touch(pictures, *(f"{number}.png" for number in range(60, 90)))
    assert build(pictures, val=0.2).added == 30
    after = splits(pictures.parent / "i.parquet")
    assert {path: after[path] for path in before} == before and "val" in {after[path] for path in after.keys() - before.keys()}


def test_build_index_refuses_another_split_option_and_a_changed_column(tmp_path: Path, pictures: Path) -> None:
    build(pictures)
    with pytest.raises(ValueError, match="60 would move from train to test"):
        build(pictures, split="test")
    touch(tmp_path, "a.mp4", "b.mp4")
    table = tmp_path / "list.csv"
    table.write_text("path,split\na.mp4,val\nb.mp4,train\n")
    build(table)
    table.write_text("path,split\na.mp4,train\nb.mp4,train\n")
    with pytest.raises(ValueError, match=r"1 would move from val to train, the first: a\.mp4"):
        build(table)
    table.write_text("path,split,caption\na.mp4,val,x\na.mp4,train,y\nb.mp4,train,z\n")
    with pytest.raises(ValueError, match=r"1 would move from val to train, the first: a\.mp4"):
        build(table)


def test_build_index_refuses_another_fold_of_ucf101(tmp_path: Path) -> None:
    names = [f"Walk/v_Walk_g{group:02d}_c01.avi" for group in range(1, 5)]
    touch(tmp_path / "UCF-101", *names)
    (tmp_path / "ucfTrainTestlist").mkdir()
    for fold, test in ((1, names[:2]), (2, names[2:])):
        for part, listed in (("test", test), ("train", [name for name in names if name not in test])):
            (tmp_path / "ucfTrainTestlist" / f"{part}list{fold:02d}.txt").write_text("".join(f"{name}\n" for name in listed))
    build(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)2 would move from test to train.*2 would move from train to test.*--fold as before"):
        build(tmp_path, fold=2)


def test_build_index_refuses_a_new_clip_whose_film_is_in_another_split(tmp_path: Path) -> None:
    """The old clips are not listed again: the table of the second run has the new ones alone."""
    head = "label,youtube_id,time_start,time_end,split\n"
    touch(tmp_path, "abc-_def123_000010_000020.mp4", "abc-_def123_000030_000040.mp4", "xyz_0000000_000001_000011.mp4")
    table = tmp_path / "part.csv"
    table.write_text(f"{head}walk,abc-_def123,10,20,val\n")
    build(table)
    table.write_text(f"{head}walk,abc-_def123,30,40,train\nwalk,xyz_0000000,1,11,train\n")
    with pytest.raises(ValueError, match=r"1 new, with film or group in val, would be in train, the first: abc-_def123_000030_"):
        build(table)
    build(table, allow_moves=True)
    assert splits(tmp_path / "i.parquet")["xyz_0000000_000001_000011.mp4"] == "train"


def test_build_index_refuses_a_new_piece_whose_film_is_held_out_unless_the_table_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "film.mp4")
    table = tmp_path / "list.csv"
    table.write_text("path,begin,end\nfilm.mp4,0,2\n")
    build(table, split="val")
    table.write_text("path,begin,end\nfilm.mp4,2,4\n")
    with pytest.raises(ValueError, match=r"1 new, with film or group in val, would be in train, the first: film\.mp4, from second 2"):
        build(table)
    table.write_text("path,begin,end,split\nfilm.mp4,2,4,train\n")
    assert build(table).added == 1


def test_build_index_notes_that_val_adds_to_the_held_out_part_of_a_source(tmp_path: Path) -> None:
    touch(tmp_path / "set", "val/a.png", *(f"train/{number}.png" for number in range(40)))
    note = build(tmp_path / "set", val=0.3).notes[-1]
    added = list(splits(tmp_path / "i.parquet").values()).count("val") - 1
    assert note == f"the source names its own val (1); --val 0.3 holds out {added} of its train besides" and added > 3
    assert build_index(list_source(str(tmp_path / "set")), tmp_path / "b.parquet").notes == []


def test_build_index_without_a_source_moves_nothing(pictures: Path) -> None:
    build(pictures, val=0.2)
    before = splits(pictures.parent / "i.parquet")
    build_index(None, pictures.parent / "i.parquet", IndexOptions(val=0.9, split="test"))
    assert splits(pictures.parent / "i.parquet") == before and MediaKey("set/0.png").path in before


@pytest.mark.parametrize("spelling", ["Validation", "VAL", "valid", "validate"])
def test_build_index_takes_any_spelling_of_a_split_from_tables_shards_and_the_option(tmp_path: Path, spelling: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text(f"path,split\na.mp4,{spelling}\nb.mp4,Unseen\n")
    build(tmp_path / "list.csv")
    assert splits(tmp_path / "i.parquet") == {"a.mp4": "val", "b.mp4": "Unseen"}
    shard(tmp_path / "s" / "0.tar", {"0.png": b"x", "0.json": f'{{"split": "{spelling}"}}'.encode()})
    assert [item.split for item in list_source(str(tmp_path / "s")).items] == ["val"]
    touch(tmp_path / "set", "c.png")
    build_index(list_source(str(tmp_path / "set")), tmp_path / "c.parquet", IndexOptions(split=spelling))
    assert splits(tmp_path / "c.parquet") == {"set/c.png": "val"}


@pytest.mark.parametrize("source", [True, False])
def test_build_index_renames_splits_of_an_older_index_and_says_so(tmp_path: Path, source: bool) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    out, table = tmp_path / "i.parquet", tmp_path / "list.csv"
    table.write_text("path,split\na.mp4,Validation\nb.mp4,train\n")
    build(table)
    stored = read_table(out)
    renamed = [split.replace("val", "Validation") for split in stored["split"].to_pylist()]
    place = stored.schema.get_field_index("split")
    write_table(stored.set_column(place, "split", pa.array(renamed)).cast(stored.schema).sort_by("split"), out)
    old = splits(out)
    assert "Validation" in old.values()
    before = {path: split.replace("Validation", "val") for path, split in old.items()}
    table.write_text("path,split\n" + "".join(f"{path},{split}\n" for path, split in old.items()))
    notes = build_index(list_source(str(table)) if source else None, out).notes
    assert splits(out) == before and notes == ['rows of split "Validation" that are val now: 1']
    assert build_index(None, out).notes == []
