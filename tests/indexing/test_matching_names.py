"""Names of texts and paths that differ in their Unicode form, their ending or their case."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest

from tests.helpers.sources import shard, touch
from walt_pl.data.tar_members import read_words
from walt_pl.indexing.build_index import build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.listing import SourceItem
from walt_pl.indexing.matching_names import find_on_disk


def decompose(text: str) -> str:
    """Return the form in which macOS writes names."""
    return unicodedata.normalize("NFD", text)


TEXTS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "upper-case endings": ({"A.TXT": b"a dog"}, "a dog", ""),
    "mixed case of the ending": ({"A.tXt": b"a dog"}, "a dog", ""),
    "text of one line": ({"A.txt": "caf\xe9\r\nnoir\u2028 bon\n".encode()}, "caf\xe9 noir bon", ""),
    "text in decomposed form": ({"A.txt": decompose("caf\xe9").encode()}, "caf\xe9", ""),
    "byte order mark": ({"A.txt": "a dog".encode("utf-8-sig")}, "a dog", ""),
    "UTF-16": ({"A.txt": "a dog".encode("utf-16")}, "", "not UTF-8 but UTF-16; .*iconv -f utf-16 "),
    "UTF-16 without mark": ({"A.txt": "a dog".encode("utf-16-le")}, "", "null bytes"),
    "Latin-1": ({"A.txt": "caf\xe9".encode("latin1")}, "", "byte 0xe9 at 3.*iconv -f latin1"),
    "two texts": ({"A.txt": b"a dog", "A.TXT": b"a cat"}, "", "2 texts, A.TXT and A.txt; keep one of them"),
    "text of a list": ({"A.txt": b"['a', 'b']"}, "", "the text of a list, "),
    "text in brackets": ({"A.txt": b"('a')"}, "('a')", ""),
    "empty text": ({"A.txt": b" \n"}, "", ""),
    "other case of the name": ({"a.txt": b"a dog"}, "", ""),
}
"""Texts of a clip A.MP4, its caption, and a pattern of its finding."""


def write(kind: str, folder: Path, members: dict[str, bytes]) -> Path:
    """Write a source as a folder or as a tar shard."""
    if kind == "tar":
        return shard(folder / "a.tar", members)
    touch(folder, *members)
    for name, content in members.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", TEXTS)
def test_list_source_takes_texts_beside_clips_by_one_rule(kind: str, name: str, tmp_path: Path) -> None:
    texts, caption, finding = TEXTS[name]
    listing = list_source(str(write(kind, tmp_path / "set", {"A.MP4": b"x", **texts})))
    assert [item.caption for item in listing.items] == [caption]
    assert any(note.startswith("caption not used, places: 1") for note in listing.notes) == bool(finding)
    if finding:
        assert re.search(finding, dict(listing.items[0].findings)["caption"])


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_list_source_compares_names_in_one_unicode_form(kind: str, tmp_path: Path) -> None:
    names = {
        decompose("\xe9.mp4"): "\xe9.txt",
        "\xf6.mp4": decompose("\xf6.txt"),
        "\xfc.mp4": "\xfc.txt",
        decompose("\xfc.mp4"): decompose("\xfc.txt"),
    }
    members = dict.fromkeys(names, b"x") | {text: text.encode() for text in names.values()}
    listing = list_source(str(write(kind, tmp_path / "set", members)))
    # Of two texts in both forms, each clip has the one in its own form.
    assert sorted(item.caption for item in listing.items) == sorted(["\xe9.txt", "\xf6.txt", "\xfc.txt", "\xfc.txt"])
    assert listing.notes == []
    twice = {decompose("\xe9\xe9.mp4"): b"x", "\xe9\xe9.txt": b"a", decompose("\xe9") + "\xe9.txt": b"b"}
    (item,) = list_source(str(write(kind, tmp_path / "twice", twice))).items
    assert item.caption == "" and dict(item.findings)["caption"].startswith("2 texts")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_list_source_counts_texts_without_file_and_files_without_text(kind: str, tmp_path: Path) -> None:
    members = {"a.mp4": b"x", "a.txt": b"a dog", "b.mp4": b"x", "c.mp4": b"x", "B.txt": b"case", "z.TXT": b"x"}
    source = write(kind, tmp_path / "set", members)
    place = f"{source}/a.tar".replace("a.tar/a.tar", "a.tar") if kind == "tar" else str(source)
    why = "a text has the name of its file, in the same upper and lower case"
    last = "b" if kind == "tar" else "b.mp4"
    assert list_source(str(source)).notes == [
        f"texts that belong to no file: 2 ({why}), the first: {place}/B.txt",
        f"2 of 3 files have no text beside them, the first: {place}/{last}",
    ]
    bare = write(kind, tmp_path / "bare", {"a.mp4": b"x", "b.mp4": b"x"})
    assert list_source(str(bare)).notes == [], "nobody misses texts where there is none"


def test_list_source_counts_a_clip_without_text_whose_label_is_not_used(tmp_path: Path) -> None:
    texts = {"a.txt": b"a dog", "b.cls": b"3.5", "c.txt": b"\xff", "d.json": b"[["}
    members = {f"{name}.png": b"x" for name in "abcd"} | texts
    notes = list_source(str(write("tar", tmp_path / "set", members))).notes
    assert f"1 of 4 files have no text beside them, the first: {tmp_path}/set/a.tar/b" in notes, "c and d have one that is not used"


def test_list_source_names_end_at_the_last_dot_in_folders_and_at_the_first_in_tars(tmp_path: Path) -> None:
    members = {"a.b.mp4": b"x", "a.b.txt": b"dots", "c.d.mp4": b"x", "c.txt": b"first dot"}
    folder = {Path(item.file).name: item.caption for item in list_source(str(write("folder", tmp_path / "folder", members))).items}
    assert folder == {"a.b.mp4": "dots", "c.d.mp4": ""}
    listing = list_source(str(write("tar", tmp_path, members)))
    assert [item.caption for item in listing.items] == ["", "first dot"] and "a.b.txt" in listing.notes[0]


def test_list_source_reports_a_text_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write("folder", tmp_path, {"a.mp4": b"x", "a.txt": b"a dog", "b.mp4": b"x", "b.txt": b"a cat"})
    opened = os.open

    def refuse(path: str, *options: int) -> int:
        if Path(path).name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options)

    monkeypatch.setattr(os, "open", refuse)
    listing = list_source(str(tmp_path))
    assert [item.caption for item in listing.items] == ["", "a cat"] and "Permission denied" in listing.notes[0]


def test_list_table_finds_files_whose_names_have_another_unicode_form(tmp_path: Path) -> None:
    touch(tmp_path, decompose("caf\xe9/\xf6.mp4"), "\xfc.mp4", "plain.mp4")
    (tmp_path / "t.csv").write_text(
        "\n".join(["path", "caf\xe9/\xf6.mp4", decompose("\xfc.mp4"), "plain.mp4", "gone\xe9.mp4"]), encoding="utf-8"
    )
    listing = list_source(str(tmp_path / "t.csv"))
    assert [Path(item.file).exists() for item in listing.items] == [True, True, True, False] and listing.notes == []
    touch(tmp_path, decompose("\xe9") + "\xe9.mp4", "\xe9" + decompose("\xe9.mp4"))
    (tmp_path / "two.csv").write_text("path\n\xe9\xe9.mp4\n", encoding="utf-8")
    listing = list_source(str(tmp_path / "two.csv"))
    assert not Path(listing.items[0].file).exists() and "1 paths are not there, and several names on disk differ" in listing.notes[0]
    build_index(listing, tmp_path / "two.parquet")
    assert "missing" in (tmp_path / "two.quarantine.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["/".join(["d"] * 3000) + "/\xe9.mp4", "\xe9" * 5000, "\xe9\0.mp4", "\xe9/" * 1000, "/dev/zero/\xe9.png"])
def test_find_on_disk_leaves_hostile_paths_as_they_are(path: str) -> None:
    item = SourceItem(path, "video")
    assert find_on_disk([item]) == ([item], [])


def test_read_words_have_the_rules_of_texts_beside_files() -> None:
    content = json.dumps({"caption": f" {decompose(chr(0xE9))}\n\u2028x ", "label": "big\u2028dog"}).encode()
    assert read_words(content, "json") == {"caption": "\xe9 x", "label": "big\u2028dog", "findings": {}}
    assert "more than one line" in read_words(b'{"label": "dog\\ncat"}', "json")["findings"]["label"]


def test_list_source_of_a_table_in_another_encoding_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path\na.mp4\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"t\.csv: not UTF-8 but UTF-16; .*iconv -f utf-16"):
        list_source(str(tmp_path / "t.csv"))
