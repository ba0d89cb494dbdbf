"""Layouts of data sets, as they lie on people's disks."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from walt_pl.indexing.dataset_layouts import Item, expand, layout_of, list_shard, list_source


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def listed(source: Path | str, **options: object) -> dict[str, Item]:
    listing = list_source(str(source), **options)  # type: ignore[arg-type]
    return {f"{Path(item.file).name}{'' if item.offset < 0 else f'@{item.offset}'}": item for item in listing.items}


def test_a_folder_gives_its_videos_and_images_with_text_files_as_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "deep/b.MKV", "train/c.png", "Validation/d.webm", "notes.pdf", ".hidden/e.mp4", "._a.mp4")
    (tmp_path / "a.txt").write_text("a dog runs\n")
    items = listed(tmp_path)
    assert {name: (item.kind, item.caption, item.split, item.label) for name, item in items.items()} == {
        "a.mp4": ("video", "a dog runs", "", -1),
        "b.MKV": ("video", "", "", -1),
        "c.png": ("image", "", "train", -1),
        "d.webm": ("video", "", "val", -1),
    }
    assert list_source(str(tmp_path)).notes == ["left out, neither video nor image: 1 .pdf"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "far", "a.mp4")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "set")
    assert len(list_source(str(tmp_path / "set")).items) == 1


def test_a_csv_gives_captions_and_labels_whatever_is_in_them(tmp_path: Path) -> None:
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


def test_a_jsonl_file_is_the_same_table(tmp_path: Path) -> None:
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
def test_wrong_tables_name_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list_source(str(tmp_path / name))


def test_an_empty_folder_says_what_was_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.zip", "b.zip")
    with pytest.raises(ValueError, match=r"no video or image in it, read as layout folder\n  left out, neither video nor image: 2 \.zip"):
        list_source(str(tmp_path))
    with pytest.raises(ValueError, match="no such folder or file"):
        list_source(str(tmp_path / "nothing"))


def ucf101(folder: Path) -> Path:
    """Two classes as the official archives unpack: UCF-101/CLASS/*.avi and ucfTrainTestlist/."""
    makeup = [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{group:02d}_c0{clip}.avi" for group in (1, 8) for clip in (1, 2)]
    yo = [f"YoYo/v_YoYo_g{group:02d}_c01.avi" for group in (1, 8, 25)]
    touch(folder / "UCF-101", *makeup, *yo)
    lists = {
        "classInd.txt": "1 ApplyEyeMakeup\n101 YoYo\n".replace("101", "2"),
        "trainlist01.txt": "".join(f"{name} 1\n" for name in makeup[2:]) + f"{yo[1]} 2\n",
        "testlist01.txt": "".join(f"{name}\n" for name in [*makeup[:2], yo[0], "YoYo/v_YoYo_g07_c01.avi"]),
    }
    for name, text in lists.items():
        (folder / "ucfTrainTestlist").mkdir(exist_ok=True)
        (folder / "ucfTrainTestlist" / name).write_text(text)
    return folder


def test_ucf101_follows_its_official_lists(tmp_path: Path) -> None:
    listing = list_source(str(ucf101(tmp_path)))
    assert listing.layout == "ucf101" and listing.classes == ["ApplyEyeMakeup", "YoYo"]
    splits = {Path(item.file).stem: item.split for item in listing.items}
    assert [name for name, split in splits.items() if split == "train"] == [
        "v_ApplyEyeMakeup_g08_c01",
        "v_ApplyEyeMakeup_g08_c02",
        "v_YoYo_g08_c01",
    ]
    assert [name for name, split in splits.items() if split == "test"][-1] == "v_YoYo_g07_c01", "listed, though it is not there"
    first = listing.items[0]
    assert (first.label, first.caption, first.family) == ("ApplyEyeMakeup", "apply eye makeup", "v_ApplyEyeMakeup_g08")
    assert listing.notes[0] == "1 of 7 clips of fold 1 are not there" and "1 files are in neither list" in listing.notes[1]
    with pytest.raises(ValueError, match="fold must be 1, 2 or 3"):
        list_source(str(tmp_path), fold=4)


def test_kinetics_follows_its_csv_files(tmp_path: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.csv").write_text(
        f'{head}riding a bike,abc-_def123,10,20,train\n"dancing, slowly",gone4567890,0,10,train\n'
    )
    (tmp_path / "annotations" / "validate.csv").write_text(f"{head}abseiling,-xyz_000000,5,15,validate\n")
    (tmp_path / "annotations" / "test.csv").write_text("youtube_id,time_start,time_end,split\nqqq00000000,1,11,test\n")
    touch(
        tmp_path,
        "train/riding a bike/abc-_def123_000010_000020.mp4",
        "val/-xyz_000000_000005_000015.mp4",
        "test/qqq00000000_000001_000011.mp4",
    )
    touch(tmp_path, "train/stray_000000_000010.mp4")
    listing = list_source(str(tmp_path))
    assert listing.layout == "kinetics" and listing.classes == ["abseiling", "dancing, slowly", "riding a bike"]
    found = {(item.split, item.label, item.caption) for item in listing.items}
    assert found == {("train", "riding a bike", "riding a bike"), ("val", "abseiling", "abseiling"), ("test", -1, "")}
    assert listing.notes[0].startswith("1 of 4 clips of test.csv, train.csv, validate.csv are not there") and "stray" in listing.notes[1]


def test_imagenet_folders_are_classes_and_the_mapping_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "train/n01440764/a.JPEG", "train/n01443537/b.JPEG", "val/n01443537/c.JPEG", "LOC_synset_mapping.txt")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    items = listed(tmp_path)
    assert layout_of(str(tmp_path)) == "classes"
    assert (items["a.JPEG"].label, items["a.JPEG"].caption, items["a.JPEG"].split) == ("n01440764", "tench", "train")
    assert (items["c.JPEG"].label, items["c.JPEG"].caption, items["c.JPEG"].split) == ("n01443537", "goldfish", "val")
    touch(tmp_path / "mine", "cat_food/a.mp4", "Dog/deep/b.mp4", "loose.mp4")
    assert layout_of(str(tmp_path / "mine")) == "folder", "folders are classes only where it is said or certain"
    mine = listed(tmp_path / "mine", layout="classes")
    assert {item.label: item.caption for item in mine.values()} == {"cat_food": "cat food", "Dog": "dog"}


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_give_the_place_of_every_member(tmp_path: Path) -> None:
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
    items, broken = list_shard(str(path))
    content = path.read_bytes()
    assert [content[item.offset : item.offset + item.bytes] for item in items] == [
        members[name] for name in ("a/0.mp4", "1.left.jpg", "2.png")
    ]
    assert [(item.kind, item.caption, item.label, item.split) for item in items] == [
        ("video", "a dog", 4, "val"),
        ("image", "", 12, "val"),
        ("image", "", -1, "val"),
    ]
    assert broken == ""


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
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


def test_a_cut_shard_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {f"{number}.jpg": bytes(2000) for number in range(5)})
    path.write_bytes(path.read_bytes()[:6000])
    listing = list_source(str(path))
    assert 2 <= len(listing.items) <= 3 and "can be read as far as" in listing.notes[0]


def test_patterns_of_shards_are_expanded_and_missing_ones_named(tmp_path: Path) -> None:
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
