"""The quarantine list beside an index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from walt_pl.data.index import Index, MediaKey, write_index
from walt_pl.data.quarantine import Quarantine


def rows() -> list[dict[str, object]]:
    same = {"kind": "video", "frames": 17, "fps": 8.0, "width": 8, "height": 8, "caption": "", "label": -1, "split": "train", "bytes": 9}
    files = [{**same, "path": f"{name}.mp4"} for name in "abcd"]
    return [*files, *({**same, "path": "s.tar", "offset": 512 * number} for number in range(1, 4))]


def test_quarantine_reads_what_it_wrote_and_hashes_alike_in_any_order(tmp_path: Path) -> None:
    one, two = (Quarantine.beside(tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert one.path == tmp_path / "one.quarantine.csv" and len(one) == 0
    reasons = {
        MediaKey("c, d.mp4"): 'corrupt: says "no"',
        MediaKey("s.tar", 512): "hang: 60 s",
        MediaKey("a.mp4"): "a watermark\nover it",
        MediaKey("f.mp4", -1, 0.1, 1 / 3): "a logo",
    }
    for place, reason in reasons.items():
        one.add(place, reason)
    for place, reason in reversed(reasons.items()):
        two.add(place, reason)
    empty = Quarantine.beside(tmp_path / "three.parquet").sha256
    assert one.sha256 == two.sha256 != empty
    one.write()
    again = Quarantine.beside(tmp_path / "one.parquet")
    assert again.reasons == reasons and again.sha256 == one.sha256


def test_quarantine_positions_index_the_given_entries(tmp_path: Path) -> None:
    write_index(rows(), tmp_path / "i.parquet")
    entries = Index(tmp_path / "i.parquet", "train").videos
    quarantine = Quarantine.beside(tmp_path / "i.parquet")
    assert quarantine.positions(entries).tolist() == []
    for place in (
        MediaKey("d.mp4"),
        MediaKey("b.mp4"),
        MediaKey("s.tar", 1024),
        MediaKey("s.tar", 9),
        MediaKey("a.mp4", 512),
        MediaKey("not in it.mp4"),
    ):
        quarantine.add(place, "corrupt: x")
    assert quarantine.positions(entries).tolist() == [1, 3, 5]
    assert quarantine.positions(entries[3:]).tolist() == [0, 2]
    assert quarantine.positions(entries[::-1]).tolist() == [1, 3, 5]


def test_quarantine_admit_and_release_change_only_findings_of_the_doctor(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.csv")
    quarantine.add(MediaKey("a.mp4"), "corrupt: x")
    quarantine.add(MediaKey("b.mp4"), "shows my face")
    for name in ("a.mp4", "b.mp4"):
        quarantine.admit(MediaKey(name), "truncated", "9 frames of 17")
    assert quarantine.reasons == {MediaKey("a.mp4"): "truncated: 9 frames of 17", MediaKey("b.mp4"): "shows my face"}
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        quarantine.release(MediaKey(name))
    assert list(quarantine.reasons) == [MediaKey("b.mp4")]


def test_quarantine_empty_leaves_no_file(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.csv")
    quarantine.add(MediaKey("a.mp4"), "corrupt: x")
    quarantine.write()
    quarantine.release(MediaKey("a.mp4"))
    quarantine.write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,why\n", r"q\.csv:1: wanted the columns path, offset, begin, end, reason, found path, why"),
        ("", "wanted the columns"),
        ("path,offset,reason\na.mp4,-1,x\nb.mp4,first,y\n", r"q\.csv:3: .*first"),
        ("path,offset,reason\n,-1,x\n", r"q\.csv:2: no path"),
    ],
)
def test_quarantine_damaged_file_raises(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Quarantine(tmp_path / "q.csv")


def test_quarantine_row_without_a_piece_covers_every_piece_of_its_file(tmp_path: Path) -> None:
    pieces = [{**rows()[0], "path": path, "begin": begin, "end": begin + 2} for path in ("a.mp4", "b.mp4") for begin in (0.0, 2.0, 4.0)]
    write_index(pieces, tmp_path / "i.parquet")
    entries = Index(tmp_path / "i.parquet", "train").videos
    (tmp_path / "i.quarantine.csv").write_text("path,offset,begin,end,reason\na.mp4,,,,mine\nb.mp4,,2,4.0,too dark\nb.mp4,,2,5,not a row\n")
    quarantine = Quarantine.beside(tmp_path / "i.parquet")
    assert quarantine.positions(entries).tolist() == [0, 1, 2, 4]
    assert [quarantine.reason(place) for place in entries.places(np.array([2, 3, 4]))] == ["mine", None, "too dark"]
    quarantine.release(MediaKey("a.mp4", -1, 2.0, 4.0))
    assert quarantine.positions(entries).tolist() == [0, 1, 2, 4], "the row of the file stays"


def test_quarantine_offset_may_be_left_empty(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("path,offset,reason\na.mp4,,mine\n")
    assert Quarantine(tmp_path / "q.csv").reasons == {MediaKey("a.mp4"): "mine"}


@pytest.mark.parametrize(
    "text",
    [
        f"path,offset,reason\na.mp4,{10**30},x\n",
        f"path,offset,reason\na.mp4,{'9' * 9000},x\n",
        "path,offset,reason\na.mp4,-5,x\n",
        "path,offset,begin,reason\na.mp4,,nan,x\n",
        "path,offset,end,reason\na.mp4,,1e400,x\n",
        "path,offset,begin,reason\na.mp4,," + "x" * 90_000 + ",x\n",
        f"path,offset,reason\na.mp4,,{'x' * 200_000}\n",
        'path,offset,reason\na.mp4,,"x' + "\n" * 200_000,
        "path,offset,reason\na.mp4,,\udcff\n",
    ],
)
def test_quarantine_hostile_row_ends_with_a_short_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"q\.csv:.*; mend .* run the doctor") as caught:
        Quarantine(tmp_path / "q.csv")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", ["pipe", "broken link", "link to itself", "folder"])
def test_quarantine_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "q.csv"
    make = {
        "pipe": lambda: os.mkfifo(path),
        "broken link": lambda: path.symlink_to("nothing"),
        "link to itself": lambda: path.symlink_to(path),
        "folder": path.mkdir,
    }
    make[kind]()
    with pytest.raises(ValueError, match=r"q\.csv.*run the doctor"):
        Quarantine(path)
