"""Event files: equal to TensorBoard's own reader, bounded, and honest about damage."""

import struct
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from tests.helpers.run_logs import noise_gif, write_events
from walt_pl.report import event_file
from walt_pl.report.event_file import read_event_file, read_picture
from walt_pl.untrusted import UntrustedError

CURVES = {"train/loss": [(9, 0.5), (19, 0.25)], "val/loss": [(19, float("nan"))]}


def test_read_event_file_equals_tensorboards_own_reader(tmp_path: Path) -> None:
    picture = noise_gif()
    path = write_events(tmp_path, CURVES, {"previews/a": [(5, picture), (9, noise_gif(seed=1))]})
    theirs = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    found = read_event_file(path)
    assert found.problems == [] and list(found.curves) == theirs.Tags()["scalars"]
    for tag, curve in found.curves.items():
        assert list(map(str, zip(curve.steps, curve.values, strict=True))) == [str((e.step, e.value)) for e in theirs.Scalars(tag)]
    assert [(place.tag, place.step) for place in found.pictures] == [("previews/a", 5), ("previews/a", 9)]
    assert [read_picture(place) for place in found.pictures] == [e.encoded_image_string for e in theirs.Images("previews/a")]
    assert read_picture(found.pictures[0]) == picture
    assert found.began == pytest.approx(theirs.FirstEventTimestamp(), abs=1e-6)


def test_read_event_file_keeps_what_lies_before_a_cut(tmp_path: Path) -> None:
    path = write_events(tmp_path, {"train/loss": [(step, 1.0) for step in range(10)]})
    path.write_bytes(path.read_bytes()[:-5])
    found = read_event_file(path)
    assert list(found.curves["train/loss"].steps) == list(range(9))
    assert len(found.problems) == 1 and path.name in found.problems[0] and "is cut off" in found.problems[0]


@pytest.mark.parametrize("place", [0, 8, 30, -1])
def test_read_event_file_names_a_flipped_byte(tmp_path: Path, place: int) -> None:
    path = write_events(tmp_path, CURVES)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (problem,) = read_event_file(path).problems
    assert path.name in problem and "has another checksum" in problem


def test_read_event_file_reads_no_record_of_a_size_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_events(tmp_path, CURVES)
    head = struct.pack("<Q", event_file.MAX_RECORD_BYTES + 1)
    path.write_bytes(path.read_bytes() + head + struct.pack("<I", masked_crc32c(head)))
    found = read_event_file(path)
    assert list(found.curves["train/loss"].steps) == [9, 19]
    assert "says 67,108,865 bytes, at most 67,108,864 are read" in found.problems[0]


def test_read_event_file_names_bytes_that_are_no_event(tmp_path: Path) -> None:
    head, data = struct.pack("<Q", 3), b"\xff\xff\xff"
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data)))
    assert "a record is no event" in read_event_file(path).problems[0]


def test_read_event_file_follows_no_link(tmp_path: Path) -> None:
    path = write_events(tmp_path / "elsewhere", CURVES)
    link = tmp_path / path.name
    link.symlink_to(path)
    found = read_event_file(link)
    assert found.curves == {} and "is not a plain file" in found.problems[0]


def test_read_event_file_limits_tags_pictures_and_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {"a" * 101: [(0, 1.0)], **{f"train/{number}": [(0, 1.0)] for number in range(6)}}
    path = write_events(tmp_path, curves, {"previews/a": [(step, noise_gif()) for step in range(4)]})
    monkeypatch.setattr(event_file, "MAX_TAGS", 4)
    monkeypatch.setattr(event_file, "MAX_PICTURES", 3)
    found = read_event_file(path)
    assert list(found.curves) == [f"train/{number}" for number in range(4)] and len(found.pictures) == 3
    assert [problem.partition(" ")[2].split(":")[0] for problem in found.problems] == [
        "has a tag of more than 100 characters",
        "has more than 4 tags",
        "has more than 3 pictures",
    ]
    monkeypatch.setattr(event_file, "MAX_RECORDS", 3)
    assert list(read_event_file(path).curves) == ["train/0"]  # the first record is the version


def test_read_picture_compares_the_checksum_of_a_large_picture(tmp_path: Path) -> None:
    path = write_events(tmp_path, {}, {"previews/a": [(5, noise_gif(frames=12, side=128))]})
    (place,) = read_event_file(path).pictures
    data = bytearray(path.read_bytes())
    assert len(data) > event_file.CHECKED_BYTES
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert read_event_file(path).problems == []  # it is compared when it is shown
    with pytest.raises(UntrustedError, match="has another checksum"):
        read_picture(place)
