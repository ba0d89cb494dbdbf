"""List tar shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.sources import shard, touch
from walt_pl.data.caption_values import MAX_CAPTIONS
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.shard_names import expand
from walt_pl.indexing.tar_shards import list_shard
from walt_pl.media.extensions import NOT_READ


def test_list_shard_gives_the_place_of_every_member(tmp_path: Path) -> None:
    members = {
        "a/0.mp4": b"first clip",
        "a/0.txt": b"a dog\n",
        "a/0.json": b'{"caption": "less than the text file", "label": 4}',
        "1.left.jpg": b"picture",
        "1.cls": b"12",
        "2.json": b"{broken",
        "2.png": b"png" * 300,
    }
    path = shard(tmp_path / "set-val-0001.tar", members)
    items, broken, unread, loose = list_shard(str(path))
    content = path.read_bytes()
    assert [content[item.offset : item.offset + item.bytes] for item in items] == [
        members[name] for name in ("a/0.mp4", "1.left.jpg", "2.png")
    ]
    assert [(item.kind, item.caption, item.label, item.split) for item in items] == [
        ("video", "a dog", 4, "val"),
        ("image", "", 12, "val"),
        ("image", "", -1, "val"),
    ]
    assert broken == "" and loose == [] and not unread


def test_list_shard_samples_equal_those_of_webdataset(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    members = {f"{key}.{ending}": f"{key} {ending}".encode() for key in ("x/000", "x/001.5", "002") for ending in ("mp4", "txt")}
    path = shard(tmp_path / "a.tar", members)
    content = path.read_bytes()
    ours = [(content[item.offset : item.offset + item.bytes], item.caption) for item in list_shard(str(path))[0]]
    samples = list(wds.WebDataset(str(path), shardshuffle=False))
    theirs = [
        (sample[name], sample.get(name.replace("mp4", "txt"), b"").decode())
        for sample in samples
        for name in sample
        if name.endswith("mp4")
    ]
    assert [content for content, _ in ours] == [content for content, _ in theirs]
    assert ours[0] == theirs[0] == (b"x/000 mp4", "x/000 txt")


def test_list_source_counts_pictures_of_shards_that_are_not_read(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / f"{number}.tar", {"0.gif": b"x", "1.left.GIF": b"x", "2.png": b"x", "3.heic": b"x", "4.npy": b"x"})
    listing = list_source(str(tmp_path))
    assert len(listing.items) == 2
    assert listing.notes == [
        f"left out: 4 pictures .gif, which are not read; convert them, for example: {NOT_READ['gif']}",
        "left out: 2 pictures .heic, which are not read; convert them, for example: magick a.heic a.png",
    ]


def test_list_source_of_a_truncated_shard_gives_the_whole_members_and_says_so(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {f"{number}.jpg": bytes(2000) for number in range(5)})
    path.write_bytes(path.read_bytes()[:6000])
    listing = list_source(str(path))
    assert 2 <= len(listing.items) <= 3 and "can be read as far as" in listing.notes[0]


def test_list_source_expands_shard_patterns_and_names_missing_shards(tmp_path: Path) -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{0..1}/{1..2}.tar") == ["0/1.tar", "0/2.tar", "1/1.tar", "1/2.tar"]
    shard(tmp_path / "train" / "0.tar", {"a.jpg": b"x"})
    shard(tmp_path / "train" / "1.tar", {"b.jpg": b"x"})
    assert [item.split for item in list_source(str(tmp_path / "train")).items] == ["train", "train"]
    assert len(list_source(f"{tmp_path}/train/*.tar").items) == 2
    with pytest.raises(ValueError, match=r"1 of 3 shards are not there, the first: .*2\.tar"):
        list_source(f"{tmp_path}/train/{{0..2}}.tar")
    touch(tmp_path / "packed", "a.tar.gz")
    with pytest.raises(ValueError, match=r"unpack them first: gunzip .*a\.tar\.gz"):
        list_source(str(tmp_path / "packed"), layout="webdataset")


SEVERAL = b'{"caption": ["a dog", "a cat"], "label": 4, "split": "val"}'


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"0.json": SEVERAL}, ("a dog", "a cat")),
        ({"0.txt": b"of the text", "0.json": SEVERAL}, ("a dog", "a cat")),
        ({"0.json": SEVERAL, "0.txt": b"of the text"}, ("a dog", "a cat")),
        ({"0.json": b'{"caption": ["a dog"], "label": 4, "split": "val"}', "0.txt": b"of the text"}, ("of the text",)),
        ({"0.json": b'{"caption": "a dog", "label": 4, "split": "val"}', "0.txt": b" "}, ("a dog",)),
        ({"0.json": b'{"caption": [], "text": ["a", "b"], "label": 4, "split": "val"}'}, ("a", "b")),
        ({"0.txt": b"a dog\nand a cat\n", "0.json": b'{"label": 4, "split": "val"}'}, ("a dog and a cat",)),
    ],
)
def test_list_shard_takes_lists_of_captions(tmp_path: Path, members: dict[str, bytes], captions: tuple[str, ...]) -> None:
    items, broken, *_ = list_shard(str(shard(tmp_path / "a.tar", {"0.png": b"png", **members})))
    assert [(item.caption, *item.more_captions) for item in items] == [captions]
    assert (items[0].label, items[0].split, items[0].findings, broken) == (4, "val", (), "")


@pytest.mark.parametrize("caption", [b"5", b"true", b'{"en": "a dog"}', b'["a dog", 3]', b"[[]]", b"\"['a dog', 'a cat']\""])
def test_list_shard_caption_of_another_type_is_a_finding_of_its_item(tmp_path: Path, caption: bytes) -> None:
    bad = b'{"caption": ' + caption + b', "label": 4, "split": "val"}'
    items, *_ = list_shard(str(shard(tmp_path / "a.tar", {"0.png": b"png", "0.json": bad, "1.png": b"png", "1.json": SEVERAL})))
    assert [(item.caption, item.label, item.split) for item in items] == [("", 4, "val"), ("a dog", 4, "val")]
    assert [name for name, _ in items[0].findings] == ["caption"] and items[0].findings[0][1].startswith("'0.json': ")
    assert not items[1].findings
    texts, *_ = list_shard(str(shard(tmp_path / "b.tar", {"0.png": b"png", "0.txt": b"['a dog', 'a cat']"})))
    assert texts[0].caption == "" and dict(texts[0].findings)["caption"].startswith("'0.txt': the text of a list")


def test_list_source_counts_each_field_of_a_sample_that_is_not_used(tmp_path: Path) -> None:
    words = {
        "0": {"caption": 5, "label": [1], "split": 7},
        "1": {"caption": "a dog", "label": 3.5},
        "2": {"caption": ["a"] * (MAX_CAPTIONS + 1), "label": -5, "split": "val"},
        "3": {"caption": "a cat", "label": 4, "split": ["val"]},
    }
    members = {f"{key}.json": json.dumps(row).encode() for key, row in words.items()} | {f"{key}.png": b"x" for key in words}
    counts = [note.partition(", the first: ")[::2] for note in list_source(str(shard(tmp_path / "a.tar", members))).notes[:3]]
    assert [count for count, _ in counts] == [
        "caption not used, places: 2",
        "label not used, places: 3",
        "split not used, places: 2",
    ]
    assert all(first.startswith(f"'{tmp_path}/a.tar': {count.split()[0]}: '0.json': ") for count, first in counts)


def test_list_shard_split_of_another_type_is_a_finding_of_its_item(tmp_path: Path) -> None:
    items, *_ = list_shard(str(shard(tmp_path / "test-0.tar", {"0.png": b"png", "0.json": b'{"split": ["val"], "caption": "a"}'})))
    assert (items[0].split, items[0].caption) == ("test", "a") and dict(items[0].findings)["split"].startswith("'0.json': must be text")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("0.cls", b"3.5", "label 3.5 is no whole number"),
        ("0.cls", b"-5", "negative"),
        ("0.json", b'{"caption": "a dog", "label": 3.5}', "label 3.5 is no whole number"),
        ("0.json", b'{"caption": "a dog", "label": [3]}', "is a list"),
        ("0.json", b'{"caption": "a dog", "label": 2147483648}', "32 bits"),
    ],
)
def test_list_source_of_shards_leaves_out_a_label_and_keeps_its_caption(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = shard(tmp_path / "a.tar", {"0.jpg": b"x", name: content, "1.jpg": b"y", "1.cls": b"4.0"})
    listing = list_source(str(path))
    assert [(item.caption, item.label) for item in listing.items] == [("a dog" if name == "0.json" else "", -1), ("", 4)]
    (note,) = [note for note in listing.notes if note.startswith("label not used, places: 1")]
    assert words in note and f"'{name}': " in note
