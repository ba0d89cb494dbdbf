"""List CSV and JSONL files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    assert [(item.kind, item.caption, item.label) for item in items] == [("video", "one", "walk"), ("video", "", "7")], (
        "names, once one is a name"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,caption\na.mp4,x\n,y\n", r'a\.csv:3: no "path" \(found: caption\)'),
        ("a.csv", "path,caption\na.mp4,one, two\n", r"a\.csv:2: more fields than columns"),
        ("a.csv", "path\na.xyz\n", r"a\.csv:2: a\.xyz is neither video nor image"),
        ("a.csv", "path\n", r"a\.csv: no video or image in it"),
        ("a.jsonl", '{"path": "a.mp4"}\n{"path": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '["a.mp4"]\n', r"a\.jsonl:1: wanted an object"),
        ("a.xlsx", "PK", r"wanted a folder, a \.csv, a \.jsonl or a \.tar, found a file \.xlsx"),
    ],
)
def test_list_source_names_the_line_of_a_wrong_table(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list_source(str(tmp_path / name))
