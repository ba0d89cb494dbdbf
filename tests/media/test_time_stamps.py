"""Read files whose time stamps are flawed, by the order of their frames."""

from __future__ import annotations

import shlex
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.clips import B_FRAMES, CASES, CLOSED, FRAMES, KEYS, RATE, UNEVEN, Case, counting_clip, entry_of, numbers
from walt_pl.data.batch import SampleRef
from walt_pl.data.index import IndexEntry
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.indexing.probe_file import probe_media_file, stat_media_file
from walt_pl.media import probing
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.media.media_file import Media
from walt_pl.media.probing import Probe, probe
from walt_pl.media.reading import read_clip, read_last_frames, read_video
from walt_pl.media.seeking import by_number
from walt_pl.media.spans import Clock, FrameRange
from walt_pl.media.time_stamps import look_at_times
from walt_pl.media.types import COUNTED

MPEG4 = ("mpeg4", {"g": str(KEYS)})
MPEG4_B = ("mpeg4", {"g": str(KEYS), "bf": "2"})
H264 = ("libx264", CLOSED)
H264_B = ("libx264", B_FRAMES)
UNIT = 1000
"""Units of time from frame to frame."""


def pair_equal(time: int) -> int | None:
    """Give every fifth frame the time of the one before it."""
    return time - UNIT if time // UNIT % 5 == 4 else time


def two_equal(time: int) -> int | None:
    return time // (2 * UNIT) * 2 * UNIT


def neighbours_swapped(time: int) -> int | None:
    return time + {1: UNIT, 2: -UNIT}.get(time // UNIT % 4, 0)


def one_ahead(time: int) -> int | None:
    return time + 3 * UNIT * (time // UNIT % 7 == 3)


def some_missing(time: int) -> int | None:
    return None if time // UNIT % 3 == 1 else time


def jittering(time: int) -> int | None:
    return time + int(np.random.default_rng(time // UNIT).integers(-700, 700))


def late_glitch(time: int) -> int | None:
    """Give one frame alone, far from the first one, the time of the one before it."""
    return time - UNIT if time == 50 * UNIT else time


def key_back(time: int) -> int | None:
    """Give a key frame and the next one times before the end of the group before them, and behind its key frame."""
    return time - UNIT * 9 // 4 if time // UNIT in (KEYS, KEYS + 1) else time


def group_entered(time: int) -> int | None:
    """Give a frame that is no key frame a time in the group before its own."""
    return time - UNIT * 15 // 2 if time == (3 * KEYS + 1) * UNIT else time


def within_group(time: int) -> int | None:
    """Give the last frame of a group a time within its group, so that no other group is touched."""
    return time - UNIT * 15 // 2 if time == (3 * KEYS - 1) * UNIT else time


def all_equal(time: int) -> int | None:
    return 0


FLAWS = [
    ("equal.mp4", MPEG4, pair_equal),
    ("equal.mov", H264_B, two_equal),
    ("equal.mkv", MPEG4_B, two_equal),
    ("equal.ts", H264, pair_equal),
    ("swapped.mp4", H264_B, neighbours_swapped),
    ("swapped.mkv", MPEG4, neighbours_swapped),
    ("ahead.mp4", MPEG4_B, one_ahead),
    ("jitter.mp4", H264, jittering),
    ("missing.ts", H264_B, some_missing),
    ("glitch.mp4", H264, late_glitch),
    ("no_rate.ts", MPEG4_B, pair_equal),
    ("key_back.mkv", H264, key_back),
    ("key_back.ts", MPEG4, key_back),
    ("entered.mkv", H264, group_entered),
    ("within.mkv", H264, within_group),
    ("within.mp4", MPEG4, within_group),
]


def write_flawed(path: Path, codec: tuple[str, dict[str, str]], flaw: Callable[[int], int | None], width: int = 96) -> None:
    """Write `FRAMES` numbered frames whose times went through `flaw`. Their order in the file stays right."""
    name, options = codec
    encoder = av.CodecContext.create(name, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.thread_count = width, 64, "yuv420p", 1
    encoder.time_base, encoder.framerate, encoder.options = Fraction(1, RATE), Fraction(RATE), options
    if path.suffix != ".ts":
        encoder.flags |= av.codec.context.Flags.global_header
    packets = []
    for number, picture in enumerate(counting_clip(FRAMES, 64, width)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, encoder.time_base
        packets += encoder.encode(frame)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, 64, "yuv420p", Fraction(1, RATE * UNIT)
        container.start_encoding()
        for packet in [*packets, *encoder.encode()]:
            assert packet.pts is not None and packet.dts is not None
            time = flaw(packet.pts * UNIT)
            # Containers refuse a time of display before that of decoding.
            packet.pts, packet.dts = None if time is None else time + 8 * UNIT, packet.dts * UNIT if flaw is not all_equal else 0
            packet.time_base, packet.stream = Fraction(1, RATE * UNIT), stream
            container.mux(packet)


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[IndexEntry, Probe]]:
    """A file of each flaw, and one with a jump back in the middle, with what probe finds in them."""
    folder = tmp_path_factory.mktemp("flawed")
    for name, codec, flaw in FLAWS:
        write_flawed(folder / name, codec, flaw)
    write_flawed(folder / "sound.ts", H264, lambda time: time)
    (folder / "back.ts").write_bytes(2 * (folder / "sound.ts").read_bytes())
    write_flawed(folder / "later.ts", H264, lambda time: time + 200 * UNIT)
    (folder / "apart.ts").write_bytes((folder / "later.ts").read_bytes() + (folder / "sound.ts").read_bytes())
    for name in ("sound.ts", "later.ts"):
        (folder / name).unlink()
    return {path.name: (entry_of(path, found := probe(path)), found) for path in folder.iterdir()}


def known_and_unknown(entry: IndexEntry) -> Iterator[IndexEntry]:
    """Yield the entry as it was examined, as nobody examined it, and of a file that has changed since."""
    yield from (entry, replace(entry, decoder="", fps=0.0), replace(entry, bytes=entry.bytes + 1))


def shown(name: str) -> list[int]:
    """The frames of the file, in order."""
    return [*range(FRAMES)] * (2 if name in BACK else 1)


BACK = ("back.ts", "apart.ts")
"""Files whose times jump back in the middle: to times that were there, and to others."""
NAMES = [*(name for name, *_ in FLAWS), *BACK]


@pytest.mark.parametrize("name", NAMES)
def test_probe_of_flawed_times_counts_frames_at_the_rate_of_the_container(name: str, flawed: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry, found = flawed[name]
    count = len(shown(name))
    assert found == Probe(count, RATE, 96, 64, count / RATE, False, COUNTED)
    facts = probe_media_file(stat_media_file(str(entry.path), "video"))
    assert (facts[0].decoder, facts[0].finding) == (COUNTED, ""), "the index remembers it"


@pytest.mark.parametrize("name", NAMES)
def test_read_clip_of_flawed_times_gives_the_frames_in_order(name: str, flawed: dict[str, tuple[IndexEntry, Probe]]) -> None:
    order = shown(name)
    for entry in known_and_unknown(flawed[name][0]):
        for start in (0, 1, 4, 5, 11, 12, 13, 30, 33, 47, 50, len(order) - 5):
            for stride in (1, 3):
                wanted = order[start : start + 5 * stride : stride]
                clip = read_clip(entry, FrameRange(len(wanted), stride=stride, start=start))
                assert numbers(clip) == wanted, (entry.decoder, start, stride)
        for start in (4, 12, 13, 33, 50):
            assert numbers(read_video(entry.path, 5, start)) == order[start : start + 5]


@pytest.mark.parametrize("name", NAMES)
def test_read_clip_at_fps_of_flawed_times_goes_by_the_mean_rate(name: str, flawed: dict[str, tuple[IndexEntry, Probe]]) -> None:
    order, entry = shown(name), flawed[name][0]
    # Times that jitter are ascending in some places, and are believed there where nobody examined the file.
    for known in known_and_unknown(entry) if name != "jitter.mp4" else [entry]:
        for start in (0.0, 1.3, 4.1, 6.0):
            first = int(start * RATE + 0.3)
            wanted = order[first : first + 10 : 2]
            assert numbers(read_clip(known, FrameRange(len(wanted), fps=RATE / 2, start=start))) == wanted, (known.decoder, start)
    assert numbers(read_last_frames(entry.path, 4, RATE / 2)) == order[-7::2]
    assert numbers(read_last_frames(entry.path, 4)) == order[-4:]


@pytest.mark.parametrize("name", ["equal.mp4", "swapped.mp4", *BACK])
def test_read_clip_of_a_piece_of_flawed_times_has_its_frames_by_the_mean_rate(
    name: str, flawed: dict[str, tuple[IndexEntry, Probe]]
) -> None:
    entry, found = flawed[name]
    half = len(shown(name)) // 2 / RATE
    for begin, end in ((0.0, 1.5), (1.5, half + 1), (half + 1, 0.0)):
        inside = shown(name)[int(begin * RATE) : int(end * RATE) if end else None]
        part = found.piece(begin, end)
        assert (part.frames, part.decoder) == (len(inside), COUNTED)
        for known in known_and_unknown(replace(entry, begin=begin, end=end)):
            for start in (0, 3):
                clip = read_clip(known, FrameRange(4, start=start, stride=2))
                assert numbers(clip) == inside[start : start + 8 : 2], (known.decoder, begin, start)


def test_pixel_dataset_draws_windows_of_flawed_times_in_order(tmp_path: Path) -> None:
    write_flawed(tmp_path / "a.mp4", MPEG4_B, pair_equal, width=64)
    # A window as large as the frame: its bars can be read.
    for fps, stride in ((None, 1), (RATE / 2, 2)):
        source = PixelDataset([entry_of(tmp_path / "a.mp4")], (), ClipTransform(64, frames=5, fps=fps, crop=64))
        starts = set()
        for epoch in range(12):
            sample = source[SampleRef("video", 0, epoch, 0)]
            assert not sample.failure
            seen = numbers(to_uint8(sample.content))
            assert seen == list(range(seen[0], seen[0] + 5 * stride, stride))
            starts.add(seen[0])
        assert len(starts) > 4


def test_read_clip_reads_members_of_flawed_times(tmp_path: Path, flawed: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry, found = flawed["equal.mp4"]
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(entry.path, "a.mp4")
    with tarfile.open(shard) as tar:
        member = tar.getmembers()[0]
    assert probe(shard, member.offset_data, member.size) == found
    for known in (replace(entry, path=shard, offset=member.offset_data), replace(entry, path=shard, offset=member.offset_data, decoder="")):
        assert numbers(read_clip(known, FrameRange(5, start=29))) == list(range(29, 34))


def test_probe_gives_the_command_for_a_file_without_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "it's; a $(file).mp4"
    write_flawed(path, MPEG4, all_equal)
    reason = probe(path).reason
    assert reason.startswith("all frames have the same time; convert it with: ffmpeg ") and "25 is its frames a second" in reason
    command = shlex.split(reason.partition("convert it with: ")[2].partition(" (25")[0])
    assert command == ["ffmpeg", "-r", "25", "-i", str(path), "-c:v", "libx264", str(tmp_path / "it's; a $(file).new.mp4")]
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(path, "a.mp4")
    with tarfile.open(shard) as tar:
        member = tar.getmembers()[0]
    assert "unpack it, and convert it with: ffmpeg -r 25 -i FILE" in probe(shard, member.offset_data, member.size).reason


def test_probe_of_flawed_times_leaves_decord_alone(flawed: dict[str, tuple[IndexEntry, Probe]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "read_decord", lambda *_: pytest.fail("decord was asked"))
    assert probe(flawed["equal.mp4"][0].path).decoder == COUNTED


def test_probe_counts_where_sound_times_do_not_lead_to_the_frames(
    probes: dict[str, tuple[IndexEntry, Probe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(container: Any, stream: Any, wanted: Any, clock: Clock) -> Iterator[Any]:
        return by_number(container, stream, wanted if clock.counted else wanted + 1, clock)

    monkeypatch.setattr(probing, "by_number", lost)
    for name in ("closed.mp4", "uneven.mp4"):
        entry, found = probes[name]
        assert probe(entry.path) == Probe(FRAMES, found.fps, 96, 64, FRAMES / found.fps, False, COUNTED)


def test_probe_refuses_a_file_whose_frames_differ_each_time(
    probes: dict[str, tuple[IndexEntry, Probe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "by_number", lambda container, stream, wanted, clock: by_number(container, stream, wanted + 1, clock))
    path = probes["closed.mp4"][0].path
    assert probe(path).reason.startswith(f"its frames differ each time that it is decoded; convert it with: ffmpeg -r 8 -i {path} ")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_look_at_times_believes_those_of_sound_files(case: Case, probes: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry, found = probes[case.name]
    assert found.decoder != COUNTED
    clock = look_at_times(Media(entry.path), Clock(begin=1.0))
    plain = case.name in ("b_frames.h264", "b_frames.avi", "mpeg4_b_frames.avi", "mpeg2.mpg")  # found by counting, whatever their times
    assert plain or clock == Clock(uneven=case.times is not None, begin=1.0)


def test_read_clip_of_an_unknown_uneven_file_counts_by_its_times(probes: dict[str, tuple[IndexEntry, Probe]]) -> None:
    assert len(UNEVEN) == FRAMES
    for name in ("uneven.mp4", "uneven.mkv", "uneven.webm"):
        for start in (9, 21, 30, 50):
            entry = replace(probes[name][0], decoder="", fps=0.0)
            assert numbers(read_clip(entry, FrameRange(5, start=start))) == list(range(start, start + 5))
