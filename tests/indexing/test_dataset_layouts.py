"""Layouts of data sets, as they lie on people's disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sources import touch
from walt_pl.indexing.dataset_layouts import layout_of, list_source
from walt_pl.indexing.listing import SourceItem
from walt_pl.media.extensions import NOT_READ


def listed(source: Path | str, **options: object) -> dict[str, SourceItem]:
    listing = list_source(str(source), **options)  # type: ignore[arg-type]
    return {f"{Path(item.file).name}{'' if item.offset < 0 else f'@{item.offset}'}": item for item in listing.items}


def test_list_source_folder_gives_videos_and_images_with_text_files_as_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "deep/b.MKV", "train/c.png", "Validation/d.webm", "notes.pdf", ".hidden/e.mp4", "._a.mp4")
    (tmp_path / "a.txt").write_text("a dog runs\n")
    items = listed(tmp_path)
    assert {name: (item.kind, item.caption, item.split, item.label) for name, item in items.items()} == {
        "a.mp4": ("video", "a dog runs", "", -1),
        "b.MKV": ("video", "", "", -1),
        "c.png": ("image", "", "train", -1),
        "d.webm": ("video", "", "val", -1),
    }
    assert list_source(str(tmp_path)).notes == [
        "left out, neither video nor image: 1 .pdf",
        f"3 of 4 files have no text beside them, the first: {tmp_path}/Validation/d.webm",
    ]


def test_list_source_counts_pictures_of_folders_that_are_not_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.gif", "c.GIF", "d.apng", "e.avif", "f.heic", *(f"{n}.x{n}" for n in range(9)))
    said = list_source(str(tmp_path)).notes
    assert said[0].startswith("left out, neither video nor image: 1 .x") and len(said) == 5
    assert said[1:] == [
        f"left out: {count} pictures .{ending}, which are not read; convert them, for example: {command}"
        for count, ending, command in (
            (2, "gif", NOT_READ["gif"]),
            (1, "apng", NOT_READ["apng"]),
            (1, "avif", "magick a.avif a.png"),
            (1, "heic", "magick a.heic a.png"),
        )
    ]


def test_list_source_follows_linked_folders_once(tmp_path: Path) -> None:
    touch(tmp_path / "far", "a.mp4")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "set")
    assert len(list_source(str(tmp_path / "set")).items) == 1


def test_list_source_of_an_empty_folder_names_what_was_found(tmp_path: Path) -> None:
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


def test_list_source_ucf101_follows_its_official_lists(tmp_path: Path) -> None:
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


def test_list_source_kinetics_follows_its_csv_files(tmp_path: Path) -> None:
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


def test_list_source_imagenet_folders_are_classes_named_by_the_mapping(tmp_path: Path) -> None:
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


def test_list_source_lists_are_split_at_line_ends_alone(tmp_path: Path) -> None:
    touch(tmp_path, "train/n01440764/a.JPEG", "train/n01443537/b.JPEG")
    mapping = "n01440764 tench\u2028fish, Tinca\r\nn01443537 gold\x85fish, Carassius\r"
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping, encoding="utf-8", newline="")
    assert {item.label: item.caption for item in listed(tmp_path).values()} == {"n01440764": "tench\u2028fish", "n01443537": "gold\x85fish"}
    source = ucf101(tmp_path / "ucf")
    for name, before in (("classInd.txt", "1 ApplyEyeMakeup"), ("trainlist01.txt", "_c01.avi 1")):
        path = source / "ucfTrainTestlist" / name
        path.write_text(path.read_text().replace(before, f"{before} (a\x0cb\u2028c d.avi)", 1), encoding="utf-8")
    listing = list_source(str(source))
    assert listing.classes == ["ApplyEyeMakeup", "YoYo"] and not any("name no clip" in note for note in listing.notes)


def test_list_source_class_name_may_have_any_character_but_line_ends(tmp_path: Path) -> None:
    touch(tmp_path, "big\u2028dog/a.mp4", "cat\n/b.mp4", "c\rd/c.mp4")
    listing = list_source(str(tmp_path), layout="classes")
    assert [item.label for item in listing.items] == ["big\u2028dog", -1, -1]
    assert any("label not used, places: 2" in note for note in listing.notes)
