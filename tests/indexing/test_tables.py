"""List CSV and JSONL files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from walt_pl.data.caption_values import MAX_CAPTIONS
from walt_pl.indexing.dataset_layouts import list_source


def test_list_source_csv_gives_captions_and_labels_with_any_characters(tmp_path: Path) -> None:
    text = '\ufeffpath,Caption,label,split,likes\na.mp4,"red, ""quick""\nfox",3,val,5\nsub/b.png,x\u2028y,0,,\n'
    (tmp_path / "clips.csv").write_text(text, encoding="utf-8")
    listing = list_source(str(tmp_path / "clips.csv"))
    assert listing.layout == "table" and listing.notes == ["columns not used: likes"]
    first, second = listing.items
    assert (first.file, first.kind, first.caption, first.label, first.split) == (
        str(tmp_path / "a.mp4"),
        "video",
        'red, "quick" fox',
        3,
        "val",
    )
    assert (second.file, second.caption, second.label, second.split) == (str(tmp_path / "sub/b.png"), "x y", 0, "")
    elsewhere = list_source(str(tmp_path / "clips.csv"), root=str(tmp_path / "media"))
    assert elsewhere.items[0].file == str(tmp_path / "media" / "a.mp4")


def test_list_source_jsonl_equals_csv(tmp_path: Path) -> None:
    rows = [{"file_name": "a.mp4", "text": "one", "label": "walk"}, {"path": "b.bin", "kind": "video", "caption": None, "label": "7"}]
    (tmp_path / "clips.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    items = list_source(str(tmp_path / "clips.jsonl")).items
    assert [(item.kind, item.caption, item.label) for item in items] == [("video", "one", "walk"), ("video", "", 7)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_list_source_reads_the_labels_that_pandas_writes(tmp_path: Path, name: str) -> None:
    labels = {"a": 3.0, "b": None, "c": 10.0, "d": float("nan")}
    if name == "a.csv":
        text = "path,label\n" + "".join(f"{key}.png,{'' if label is None else label}\n" for key, label in labels.items())
    else:
        text = "".join(json.dumps({"path": f"{key}.png", "label": label}) + "\n" for key, label in labels.items())
    (tmp_path / name).write_text(text)
    listing = list_source(str(tmp_path / name))
    assert [item.label for item in listing.items] == [3, -1, 10, -1] and not listing.mixture
    assert listing.notes == [f"label not used, places: 1, the first: '{tmp_path}/d.png': label: \"nan\" stands for none"]


def test_list_source_indexes_a_row_without_a_label_that_no_class_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\na.png,-5\nb.png,2147483648\nc.png,2147483647\n")
    listing = list_source(str(tmp_path / "a.csv"))
    assert [item.label for item in listing.items] == [-1, -1, 2**31 - 1]
    assert "label not used, places: 2, the first:" in listing.notes[0] and "-5 is negative" in listing.notes[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,caption\na.mp4,x\n,y\n", r'a\.csv:3: no "path" \(found: caption\)'),
        ("a.csv", "path,caption\na.mp4,one, two\n", r"a\.csv:2: more fields than columns"),
        ("a.csv", "path,label\na.mp4,3\nb.mp4,3.5\n", r"a\.csv:3: label 3\.5 is no whole number"),
        ("a.csv", 'path,label\na.mp4,"1,000"\n', r"a\.csv:2: label 1,000 is no whole number"),
        ("a.jsonl", '{"path": "a.mp4", "Label": [3]}', r"a\.jsonl:1: label \[3\] is a list"),
        ("a.jsonl", '{"path": "a.mp4", "label": {"a": 3}}', r"a\.jsonl:1: label .* is a dict"),
        ("a.jsonl", '{"path": "a.mp4", "label": 1}\n{"path": "b.mp4", "label": true}', r"a\.jsonl:2: label True is a bool, wanted a whole"),
        ("a.csv", "path\na.xyz\n", r"a\.csv:2: a\.xyz is neither video nor image"),
        ("a.csv", "path\n", r"a\.csv: no video or image in it"),
        ("a.jsonl", '{"path": "a.mp4"}\n{"path": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '["a.mp4"]\n', r"a\.jsonl:1: wanted an object"),
        ("a.jsonl", '{"path": "a.mp4"}\n{"path": "b.mp4", "caption": 5}\n', r"a\.jsonl:2: caption: it must be text"),
        ("a.jsonl", '{"path": "a.mp4", "text": ["a", {}]}\n', r"a\.jsonl:1: caption: number 2 of its list must be text"),
        ("a.jsonl", '{"path": ["a.mp4"], "kind": "video"}\n', r'a\.jsonl:1: "path" must be text'),
        ("a.jsonl", '{"path": "a.mp4", "begin": [1]}\n', r"a\.jsonl:1: wanted seconds like 62\.5"),
        ("a.csv", "path,caption\na.mp4,x\nb.mp4,\"['a dog', 'a cat']\"\n", r"a\.csv:3: caption: the text of a list, .*\.jsonl"),
        ("a.csv", "path,caption,Caption\na.mp4,a dog,a cat\n", r"a\.csv:1: column caption .* more than once.*for several captions"),
        ("a.csv", "path,path\na.mp4,b.mp4\n", r"a\.csv:1: column path is there more than once, wanted once$"),
        *(
            ("a.csv", f"path,kind,{name},{name.title()} \na.mp4,video,1,2\n", rf"a\.csv:1: column {name} is there more than once")
            for name in ("label", "split", "kind", "begin", "end", "duration")
        ),
        ("a.jsonl", '{"path": "a.mp4", "label": 3.0, "Label": 4}', r"a\.jsonl:1: column label is there more than once, wanted once$"),
        ("a.jsonl", '{"path": "a.mp4"}\n{"path": "b.mp4", "text": "a", "TEXT": null}', r"a\.jsonl:2: column text .*for several captions"),
        ("a.xlsx", "PK", r"wanted a folder, a \.csv, a \.jsonl or a \.tar, found a file \.xlsx"),
    ],
)
def test_list_source_names_the_line_of_a_wrong_table(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list_source(str(tmp_path / name))


def test_list_source_takes_a_column_twice_that_it_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,likes,Likes,,\na.mp4,1,2,,\n")
    (tmp_path / "b.jsonl").write_text('{"path": "a.mp4", "likes": 1, "Likes": 2}')
    for name in ("a.csv", "b.jsonl"):
        assert list_source(str(tmp_path / name)).notes[0].startswith("columns not used: ")


def test_list_source_jsonl_takes_lists_of_captions(tmp_path: Path) -> None:
    captions = [["a dog", " a\ncat "], ["one"], [], "plain", None, ["x", "", None, "x"]]
    rows = [{"path": f"{number}.mp4", "caption": caption} for number, caption in enumerate(captions)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listing = list_source(str(tmp_path / "a.jsonl"))
    found = [(item.caption, item.more_captions) for item in listing.items]
    assert found == [("a dog", ("a cat",)), ("one", ()), ("", ()), ("plain", ()), ("", ()), ("x", ("x",))]
    assert listing.notes == ["clips and images of several captions: 2; training draws one of them in each epoch"]


def test_list_source_tells_where_text_differs_from_caption(tmp_path: Path) -> None:
    rows = [{"path": "a.mp4", "caption": "a", "text": text} for text in ("a", "", None, "b", ["b", "c"])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"path": "b.mp4", "caption": [], "text": ["d", "e"]}])))
    listing = list_source(str(tmp_path / "a.jsonl"))
    assert [item.caption for item in listing.items] == ["a"] * 5 + ["d"] and listing.items[-1].more_captions == ("e",)
    assert listing.notes[0] == f'"text" is not used beside another "caption": 2 rows, the first: {tmp_path}/a.jsonl:4'


def test_list_source_uses_a_limited_number_of_captions(tmp_path: Path) -> None:
    captions = list(map(str, range(MAX_CAPTIONS + 1)))
    (tmp_path / "a.jsonl").write_text(json.dumps({"path": "a.mp4", "caption": captions}))
    listing = list_source(str(tmp_path / "a.jsonl"))
    assert listing.items[0].caption == "0" and listing.items[0].more_captions == tuple(captions[1:MAX_CAPTIONS])
    assert "caption: 1,001 of one clip, the first 1,000 are used" in listing.notes[0]
