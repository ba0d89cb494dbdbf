"""Interlaced files of variable rate are read by time from near the target on, with the neighbours that reading all of them gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.clips import encode, entry_of, woven_clip
from walt_pl.data.index import IndexEntry
from walt_pl.media import seeking
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.deinterlacing import Neighbours, deinterlace
from walt_pl.media.pyav import pictures
from walt_pl.media.reading import read_sizes
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames

COUNT = 26
TIMES = tuple(40 * n + 7 * (n % 2) + 300 * (n > 8) + 1300 * (n > 17) for n in range(COUNT))
"""Milliseconds: a jitter, a pause, and a frame that stays for longer than all others together."""
FIELDS = {"flags": "+ilme+ildct"}
FILES = {
    "closed.mp4": ("libx264", {"x264-params": "tff=1:keyint=9:min-keyint=9:scenecut=0:bframes=0"}),
    "open.mkv": ("libx264", {"x264-params": "bff=1:keyint=9:min-keyint=9:scenecut=0:bframes=3:open-gop=1"}),
    "open.ts": ("libx264", {"x264-params": "tff=1:keyint=9:min-keyint=9:scenecut=0:bframes=3:open-gop=1"}),
    "intra.mkv": ("libx264", {"x264-params": "tff=1:keyint=1"}),
    "one_key.mkv": ("libx264", {"x264-params": "tff=1:keyint=600:bframes=3"}),
}
PIECES = ((0, COUNT), (0, 9), (5, 14), (9, 18), (10, 20), (18, COUNT))
"""Limits of pieces by frame number. Frames 0, 9 and 18 are key frames."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, IndexEntry]:
    folder = tmp_path_factory.mktemp("uneven")
    for name, (codec, options) in FILES.items():
        encode(folder / name, woven_clip(COUNT, 48, 128), codec, rate=25, times=TIMES, **FIELDS, **options)
    return {name: entry_of(folder / name) for name in FILES}


def decode(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def deinterlaced(frames: list[Any]) -> Frames:
    """Deinterlace frames of which the first one has no neighbour before it, and the last one none behind it."""
    windows = map(Neighbours, [None, *frames[:-1]], frames, [*frames[1:], None])
    return pictures(map(deinterlace, windows), (None,))[0]


def read(entry: IndexEntry, deinterlace: bool = True, **frame_range: Any) -> Frames:
    return read_sizes(entry, FrameRange(**frame_range), (None,), DecodeOptions(deinterlace=deinterlace))[0]


@pytest.mark.parametrize("limits", PIECES)
@pytest.mark.parametrize("name", FILES)
def test_read_sizes_deinterlaced_by_time_equals_the_whole_at_every_start(
    name: str, limits: tuple[int, int], files: dict[str, IndexEntry]
) -> None:
    entry, frames = files[name], decode(files[name].path)
    assert entry.variable_rate and len(frames) == COUNT and all(frame.interlaced_frame for frame in frames)
    first, stop = limits
    begin, end = (TIMES[number] / 1000 if 0 < number < COUNT else 0.0 for number in limits)
    entry = replace(entry, begin=begin, end=end)
    raw, whole = pictures(frames[first:stop], (None,))[0], deinterlaced(frames[first:stop])
    if entry.begin or entry.end:
        assert np.array_equal(read(entry, frames=stop - first), whole)
    for number in range(first, stop - 1):
        length = (TIMES[number + 1] - TIMES[number]) / 1000
        for later in (0.0, 0.6) if limits == PIECES[0] else (0.0,):
            start = max(0.0, TIMES[number] / 1000 - begin + later * length)
            plain, ours = (read(entry, on, frames=2, fps=25.0, start=start) for on in (False, True))
            shown = [next(n for n, one in enumerate(raw) if np.array_equal(one, frame)) for frame in plain]
            assert np.array_equal(ours, whole[shown]), (number, later)


@pytest.mark.parametrize("flags", [FIELDS, {}], ids=["interlaced", "progressive"])
def test_read_sizes_deinterlaced_by_time_decodes_as_many_frames_at_every_start(
    flags: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyint, count = 10, 100
    times = [40 * number + 13 * (number % 3) for number in range(count)]
    settings = f"keyint={keyint}:min-keyint={keyint}:scenecut=0:bframes=2" + (":tff=1" if flags else "")
    encode(tmp_path / "a.mp4", woven_clip(count, 48, 64), "libx264", rate=25, times=times, **flags, **{"x264-params": settings})
    entry = entry_of(tmp_path / "a.mp4")
    assert entry.variable_rate
    decoded, decode_packets = [0], seeking._decode

    def counting(*arguments: Any) -> Iterator[Any]:
        for found in decode_packets(*arguments):
            decoded[0] += 1
            yield found

    def cost(on: bool, start: float) -> int:
        decoded[0] = 0
        read(entry, on, frames=4, fps=12.0, start=start)
        return decoded[0]

    monkeypatch.setattr(seeking, "_decode", counting)
    more = [cost(True, time / 1000 + 0.02) - cost(False, time / 1000 + 0.02) for time in times[:-20]]
    assert min(more) >= 0
    assert all(extra <= 1 or (flags and number and number % keyint == 0) for number, extra in enumerate(more))
    assert max(more) <= 1 + (keyint + 2) * bool(flags), "the frame before a key frame belongs to the key frame before"
    assert cost(False, 0.1) > 3
