"""Read exactly the frames of a piece of a file, and none beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.clips import CASES, FRAMES, RATE, UNEVEN, Case, counting_clip, encode, entry_of, film, numbers
from walt_pl.data.batch import SampleRef
from walt_pl.data.index import IndexEntry
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.media.probing import Probe, probe
from walt_pl.media.reading import read_clip
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames, MediaError

# Kinds of files that are sought in each another way: by number, by time, by counting.
KINDS = ("closed.mp4", "open.mkv", "open.ts", "uneven.mp4", "uneven.webm", "hevc.mp4", "vp9.webm", "b_frames.avi", "mpeg2.mpg")
CUTS = (0.0, 1.0, 1.31, 2.875, 2.876, 4.001, 5.5, 7.9)
"""Seconds at 8 frames a second: on frames, beside them, and far from them."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[IndexEntry, Probe, list[Frames]]]:
    """A file of each kind, what probe finds in it, and all of its frames as PyAV decodes them."""
    folder = tmp_path_factory.mktemp("videos")
    found: dict[str, tuple[IndexEntry, Probe, list[Frames]]] = {}
    for case in CASES:
        if case.name in KINDS:
            path = case.write(folder)
            with av.open(str(path)) as container:
                whole = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
            assert len(whole) == FRAMES
            found[case.name] = (entry_of(path, result := probe(path)), result, whole)
    return found


def times_of(case: Case) -> NDArray[np.float64]:
    """Seconds of every frame."""
    return np.array(UNEVEN if case.times else [1000 * n / case.rate for n in range(FRAMES)]) / 1000


def pieces_of(case: Case) -> list[tuple[float, float, list[int]]]:
    """Begin, end and the numbers of the frames that lie between."""
    times = times_of(case)
    early = 0.3 * (times[-1] - times[0]) / (FRAMES - 1)
    cuts = [cut * RATE / case.rate for cut in CUTS] + [0.0]
    limits = zip(cuts, [*cuts[1:-1], 0.0], strict=False)
    return [
        (begin, end, [n for n, time in enumerate(times) if begin <= time + early and (not end or time + early < end)])
        for begin, end in limits
    ]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=lambda case: case.name)
def test_read_clip_of_a_piece_has_exactly_its_frames_of_the_file(
    case: Case, files: dict[str, tuple[IndexEntry, Probe, list[Frames]]]
) -> None:
    entry, found, whole = files[case.name]
    pieces = pieces_of(case)
    assert list(chain(*(inside for *_, inside in pieces))) == list(range(FRAMES)), "pieces that follow on each other share and lose none"
    for begin, end, inside in pieces:
        part = found.piece(begin, end)
        assert (part.frames, part.fps, part.decoder) == (len(inside), found.fps, found.decoder)
        piece = replace(entry, begin=begin, end=end, frames=part.frames, duration=part.duration)
        # Of an uneven file that nobody examined the mean interval is what its header says.
        unexamined = [] if case.times else [replace(piece, bytes=piece.bytes + 1), replace(piece, decoder="", fps=0.0)]
        for known in (piece, replace(piece, decoder="pyav"), *unexamined):
            for start, stride in ((0, 1), (len(inside) // 2, 1), (1, 3)):
                wanted = inside[start::stride]
                if wanted:
                    clip = read_clip(known, FrameRange(len(wanted), stride=stride, start=start))
                    assert numbers(clip) == wanted, (known.decoder, begin, end, start, stride)
                    assert known.decoder == "decord" or np.array_equal(clip, np.stack([whole[number] for number in wanted]))
                with pytest.raises(MediaError, match=f"of the piece from {begin:g} to .*, wanted {len(wanted) + 1}"):
                    read_clip(known, FrameRange(len(wanted) + 1, stride=stride, start=start))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=lambda case: case.name)
def test_read_clip_at_fps_stays_in_the_piece(case: Case, files: dict[str, tuple[IndexEntry, Probe, list[Frames]]]) -> None:
    entry, fps = files[case.name][0], case.rate * 0.4
    times, early = times_of(case), 0.3 / entry.fps
    for begin, end, inside in pieces_of(case):
        if len(inside) < 10:
            continue
        piece = replace(entry, begin=begin, end=end, frames=len(inside))
        here = times[inside]
        for start in (0.0, 2.2 / case.rate):
            first = max(0, int(np.searchsorted(here, (begin if case.times else here[0]) + start + early, side="right")) - 1)
            places = [int(np.searchsorted(here, here[first] + k / fps + early, side="right")) - 1 for k in range(3)]
            assert numbers(read_clip(piece, FrameRange(3, fps=fps, start=start))) == [inside[place] for place in places], (begin, start)
        assert numbers(read_clip(replace(piece, decoder="", fps=0.0), FrameRange(1, fps=fps))) == inside[:1]
        with pytest.raises(MediaError, match="of the piece from"):
            read_clip(piece, FrameRange(FRAMES // 2, fps=fps))


@pytest.mark.parametrize("fps", [None, 10.0, 4.0, 15.0])
def test_pixel_dataset_draws_starts_all_over_the_piece_and_nowhere_else(tmp_path: Path, fps: float | None) -> None:
    entry = entry_of(film(tmp_path / "film.mp4"))
    limits = ((0.0, 2.5), (2.5, 6.0))
    pieces = [replace(entry, begin=begin, end=end, frames=round(10 * (end - begin)), duration=end - begin) for begin, end in limits]
    # A window as large as the frame: its bars can be read.
    source = PixelDataset(pieces, (), ClipTransform(64, frames=5, fps=fps, crop=64))
    for item, (begin, end) in enumerate(limits):
        seen = set[int]()
        for number in range(40):
            sample = source[SampleRef("video", item, number, 0)]
            assert not sample.failure
            seen |= set(numbers(to_uint8(sample.content)))
        assert 10 * begin <= min(seen) < 10 * begin + 4 and 10 * end - 4 <= max(seen) < 10 * end


@pytest.mark.parametrize("fps", [None, 10.0])
def test_read_clip_of_a_piece_begins_with_a_frame_just_before_it_and_a_key_frame_just_after(tmp_path: Path, fps: float | None) -> None:
    times = [1000 * n // 10 for n in range(12)] + [1140 + 100 * n for n in range(12)]
    times[5] = 560  # uneven
    encode(tmp_path / "a.mp4", counting_clip(24), "libx264", times=times, g="12", bf="0", sc_threshold="0")
    found = probe(tmp_path / "a.mp4").piece(1.12, 0.0)
    entry = entry_of(tmp_path / "a.mp4", found, begin=1.12)
    assert found.variable_rate and found.frames == 13, "frame 11 lies 0.2 of an interval before the piece, and counts"
    if fps is None:
        assert numbers(read_clip(entry, FrameRange(13))) == list(range(11, 24))
        assert numbers(read_clip(entry, FrameRange(3, start=1))) == [12, 13, 14]
    else:  # the key frame is the one that is shown at the begin
        assert numbers(read_clip(entry, FrameRange(3, fps=fps))) == [12, 13, 14]
