"""Numbers of classes: of one source, and of sources that come to one index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers.sources import shard
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.probe_file import MediaFacts
from walt_pl.media.writing import write_image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures, which are not decoded."""
    monkeypatch.setattr(building, "_examine", lambda wanted, *_: {place: MediaFacts(1, 1) for place in wanted})
    for number in range(4):
        write_image(tmp_path / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    return tmp_path


def index(folder: Path, labels: dict[int, str], name: str = "set") -> tuple[list[int], list[str]]:
    """Index a table, and return all labels of the index with the words about it."""
    (folder / "a.csv").write_text("path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in labels.items()))
    built = build_index(list_source(str(folder / "a.csv")), folder / f"{name}.parquet")
    return pq.read_table(folder / f"{name}.parquet")["label"].to_pylist(), built.notes


def test_number_classes_keeps_the_numbers_that_pandas_wrote_as_fractions(folder: Path) -> None:
    assert index(folder, {0: "3.0", 1: "10.0", 2: "2.0", 3: ""}) == ([3, 10, 2, -1], [])
    assert not (folder / "set.classes.txt").exists()


def test_number_classes_tells_names_and_their_file(folder: Path) -> None:
    labels, notes = index(folder, {0: "cat", 1: "dog", 2: "cat"})
    assert labels == [0, 1, 0] and notes == [f'2 class names, file {folder}/set.classes.txt: "cat", "dog"']


@pytest.mark.parametrize(
    ("labels", "line", "odd"),
    [
        ({0: "3", 1: "", 2: "cat"}, 4, 'label "cat" is a name, but "3"'),
        ({0: "cat", 1: "dog", 2: "2012"}, 4, 'label "2012" is a number, but "cat"'),
    ],
)
def test_number_classes_refuses_a_mixed_column_with_the_first_odd_line(folder: Path, labels: dict[int, str], line: int, odd: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.csv:{line}: {odd}.*a\.csv:2\).* write .*set\.classes\.txt"):
        index(folder, labels)
    assert not list(folder.glob("set.*")), "nothing is written"


def test_number_classes_file_of_a_person_makes_numbers_names(folder: Path) -> None:
    (folder / "set.classes.txt").write_text("2012\ncat\n")
    labels, notes = index(folder, {0: "cat", 1: "2012", 2: "ant", 3: "nan"})
    assert labels == [1, 0, 2, -1] and "3 class names, file " in notes[1]
    assert (folder / "set.classes.txt").read_text() == "2012\ncat\nant\n"


def test_number_classes_numbers_stay_where_a_file_names_them(folder: Path) -> None:
    (folder / "set.classes.txt").write_text("7\n8\n")
    labels, notes = index(folder, {0: "1", 1: "0", 2: "9"})
    assert labels == [1, 0, 9]
    assert notes == [
        f'labels are numbers of the lines of {folder}/set.classes.txt: 0 is "7", 1 "8"; without a line there: 1, such as 9: add lines, '
        "or remove the file if it is of another source"
    ]


@pytest.mark.parametrize("spelling", ["2012", "02012", "2012.0"])
def test_number_classes_a_name_of_digits_keeps_its_number_in_a_source_without_other_names(folder: Path, spelling: str) -> None:
    (folder / "set.classes.txt").write_text(f"dog\n{spelling}\n")
    assert index(folder, {0: "dog", 1: "2012"})[0] == [0, 1]
    labels, notes = index(folder, {1: spelling})
    assert labels == [0, 1] and notes == [f'1 class names, file {folder}/set.classes.txt: "{spelling}"']
    assert index(folder, {2: "", 1: "2012"})[0] == [0, 1, -1]


def test_number_classes_error_of_a_name_of_digits_gives_advice_that_helps(folder: Path) -> None:
    labels = {0: "007", 1: "dog", 2: "1e3", 3: "0"}
    with pytest.raises(ValueError, match=r"If such a number is the name of a class, write .*set\.classes\.txt"):
        index(folder, labels)
    (folder / "set.classes.txt").write_text("dog\n007\n1e3\n0\n")
    assert index(folder, labels)[0] == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ("7\n8\n", {0: "1", 1: "7"}, r"/1\.png: label 7 is the name of a class in line 1 of .*, and label 1 \(.*/0\.png\) is none\. Write"),
        ("dog\n1\n0\n", {1: "0"}, r'/1\.png: label 0 may be the class 0 \("dog"\) or 2 \("0"\) of .*such as "class 0", also in the source'),
        ("007\n7\ndog\n", {1: "7", 2: "dog"}, r'/1\.png: label 7 may be the class 0 \("007"\) or 1 \("7"\)'),
    ],
)
def test_number_classes_refuses_a_label_that_may_be_a_number_or_a_name(
    folder: Path, names: str, labels: dict[int, str], message: str
) -> None:
    (folder / "set.classes.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        index(folder, labels)
    assert not list(folder.glob("set.parquet"))


def test_number_classes_called_by_their_own_numbers_stay(folder: Path) -> None:
    (folder / "set.classes.txt").write_text("0\n01\n2\n3.5\n")
    assert index(folder, {0: "2", 1: "1.0", 2: "0", 3: "3"})[0] == [2, 1, 0, 3]


def test_number_classes_refuses_names_that_would_take_the_numbers_of_other_rows(folder: Path) -> None:
    index(folder, {0: "0", 1: "1"})
    with pytest.raises(ValueError, match=r'such as "cat", but the index has classes by number: 0 of 0\.png\. Write .*set\.classes\.txt'):
        index(folder, {2: "cat"})
    (folder / "set.classes.txt").write_text("ant\nbee\n")
    assert index(folder, {2: "cat"})[0] == [0, 1, 2]
    assert index(folder, {0: "ant", 1: "bee"}, "again")[0] == index(folder, {0: "bee", 1: "ant"}, "again")[0][::-1]


def test_number_classes_a_source_replaces_the_numbers_of_its_own_rows(folder: Path) -> None:
    index(folder, {0: "0", 1: "1"})
    assert index(folder, {0: "cat", 1: "dog"})[0] == [0, 1]


def test_number_classes_refuses_a_mixture_over_all_shards_and_takes_no_true_for_a_name(folder: Path) -> None:
    picture = (folder / "0.png").read_bytes()
    shard(folder / "a.tar", {"0.png": picture, "0.cls": b"3.0\n", "1.png": picture, "1.cls": b"NaN"})
    shard(folder / "b.tar", {"2.png": picture, "2.json": b'{"label": 4.0, "caption": "x"}'})
    out = folder / "set.parquet"
    build_index(list_source(f"{folder}/*.tar"), out)
    assert pq.read_table(out)["label"].to_pylist() == [3, -1, 4]
    shard(folder / "c.tar", {"3.png": picture, "3.json": b'{"label": true}'})
    notes = build_index(list_source(f"{folder}/*.tar"), out).notes
    assert pq.read_table(out)["label"].to_pylist() == [3, -1, 4, -1]
    assert any("label not used, places: 1" in note and "label True is a bool" in note for note in notes)
    shard(folder / "c.tar", {"3.png": picture, "3.cls": b"cat"})
    with pytest.raises(ValueError, match=r'c\.tar: sample 3: label "cat" is a name, but "3" \(.*a\.tar: sample 0\) is a number'):
        build_index(list_source(f"{folder}/*.tar"), out)
