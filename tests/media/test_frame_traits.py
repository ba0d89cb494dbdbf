"""Interlaced and HDR files are found by their frames, and counted by the doctor."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import av
import pytest

from tests.helpers.clips import counting_clip, encode
from walt_pl.cli.main import main
from walt_pl.data.index import Index, MediaKey
from walt_pl.indexing import build_index as building
from walt_pl.indexing.build_index import IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.doctor import Finding, diagnose, render_conversion, write_report
from walt_pl.media.probing import probe

WOVEN = {"flags": "+ilme+ildct"}


def write_transfer(path: Path, codec: str, transfer: int, options: dict[str, str]) -> Path:
    """Write a clip of 10 bits with a colour transfer (ITU-T H.273) and BT.2020's primaries and matrix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv422p10le" if codec == "prores_ks" else "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
        for picture in counting_clip(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("transfer", "hdr"), [(16, True), (18, True), (1, False), (14, False)], ids=["PQ", "HLG", "BT.709", "BT.2020"])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx265", {"x265-params": "log-level=0"}),
        ("a.mkv", "libx264", {}),
        ("a.ts", "libx265", {"x265-params": "log-level=0"}),
        ("a.mov", "prores_ks", {}),
    ],
)
def test_probe_finds_hdr_by_its_transfer(name: str, codec: str, options: dict[str, str], transfer: int, hdr: bool, tmp_path: Path) -> None:
    found = probe(write_transfer(tmp_path / name, codec, transfer, options))
    assert (found.reason, found.hdr, found.interlaced) == ("", hdr, False)


def concatenate(path: Path, woven: int, plain: int) -> Path:
    """Write a transport stream of interlaced frames, and progressive ones behind them."""
    parts = []
    for frames, flags in ((woven, WOVEN), (plain, {})):
        encode(path.with_name(f"part_{path.name}"), counting_clip(frames), "mpeg2video", rate=25, **flags)
        parts.append(path.with_name(f"part_{path.name}").read_bytes())
        path.with_name(f"part_{path.name}").unlink()
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(("woven", "plain", "interlaced"), [(12, 6, True), (6, 12, False)])
def test_probe_finds_interlaced_where_most_frames_are(woven: int, plain: int, interlaced: bool, tmp_path: Path) -> None:
    found = probe(concatenate(tmp_path / "a.mpg", woven, plain))
    assert (found.frames, found.interlaced, found.hdr) == (woven + plain, interlaced, False), found


def test_diagnose_counts_interlaced_and_hdr_clips_which_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "run_isolated", lambda function, jobs, *_: ((job, function(job)) for job in jobs))
    clips, out = tmp_path / "clips", tmp_path / "set.parquet"
    clips.mkdir()
    for number in range(2):
        encode(clips / f"woven_{number}.mp4", counting_clip(20 + number), "libx264", **WOVEN)
    encode(clips / "plain.mp4", counting_clip(20), "libx264")
    write_transfer(clips / "it's; $(hdr).mp4", "libx265", 16, {"x265-params": "log-level=0"})
    built = build_index(list_source(str(clips)), out, IndexOptions())
    assert built.quarantined == 0
    videos = {entry.path.name: entry for entry in Index(out, "train").videos}
    assert {name for name, entry in videos.items() if entry.interlaced} == {"woven_0.mp4", "woven_1.mp4"}
    assert {name for name, entry in videos.items() if entry.hdr} == {"it's; $(hdr).mp4"}
    findings = diagnose(out, IndexOptions(), built.changed)
    rows = [(Path(row["path"]).name, row["finding"]) for row in csv.DictReader(write_report(findings, out).open())]
    assert {("woven_0.mp4", "interlaced"), ("woven_1.mp4", "interlaced"), ("it's; $(hdr).mp4", "hdr")} <= set(rows)
    assert not {("plain.mp4", "interlaced"), ("plain.mp4", "hdr")} & set(rows)
    capsys.readouterr()
    main(["index", str(out), "--report"])
    text = capsys.readouterr().out
    assert "data.deinterlace: true" in text and "read as if it were SDR" in text
    (line,) = [line for line in text.splitlines() if "zscale" in line]
    command = shlex.split(line.removeprefix("hdr: convert it with: "))
    assert command[:4] == ["ffmpeg", "-i", str(clips / "it's; $(hdr).mp4"), "-vf"] and command[-1] == str(clips / "it's; $(hdr).new.mp4")
    assert "zscale=t=linear" in command[4] and "tonemap" in command[4]


def test_render_conversion_names_the_first_hdr_file_and_the_members_of_shards_by_no_name(tmp_path: Path) -> None:
    kinds = {"a": "short", "b": "hdr", "c": "hdr"}
    plain, first, second = (Finding(MediaKey(name), "train", "video", kind, "") for name, kind in kinds.items())
    assert render_conversion([plain], tmp_path / "set.parquet") == ""
    assert f" -i {tmp_path}/b -vf zscale" in render_conversion([plain, first, second], tmp_path / "set.parquet")
    member = Finding(MediaKey("a.tar", 512), "train", "video", "hdr", "")
    said = render_conversion([member], tmp_path / "set.parquet")
    assert said.startswith("hdr: unpack it, and convert it with: ffmpeg -i FILE -vf zscale") and said.endswith(" NEW.mp4")


def test_pyav_has_no_zscale_so_the_doctor_names_a_command() -> None:
    assert "yadif" in av.filter.filters_available
    assert "zscale" not in av.filter.filters_available, "now PyAV can convert HDR by itself: do it in walt_pl.media, as with yadif"
