"""Videos whose colours are in a palette that the container gives once."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.clips import entry_of
from walt_pl.data.index import IndexEntry
from walt_pl.media import seeking
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.probing import Probe, probe
from walt_pl.media.reading import read_clip, read_last_frames, read_sizes, read_video
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import COUNTED, Frames

COUNT, RATE = 24, 25
FILES = {
    "qtrle_gray.mov": ("qtrle", "gray"),
    "raw_gray.mov": ("rawvideo", "gray"),
    "raw.mov": ("rawvideo", "pal8"),
    "raw.avi": ("rawvideo", "pal8"),
    "msrle.avi": ("msrle", "pal8"),
    "smc.mov": ("smc", "pal8"),
    "png.mov": ("png", "pal8"),
    "png.avi": ("png", "pal8"),
    "zmbv.avi": ("zmbv", "pal8"),
}
"""Codec and pixel format."""
SLOW = 10
"""First frame of the second half of an uneven file, where frames last three times as long."""
GAP = 2


def levels() -> np.ndarray:
    """Return the grey ramp of each frame, uint8 [t h w]. It moves."""
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    return np.stack([np.roll(ramp, 3 * number, axis=1) for number in range(COUNT)])


def colours(codec_format: str) -> Frames:
    """Return the frames that are written: a palette turns the levels round."""
    grey = levels() if codec_format == "gray" else 255 - levels()
    return np.repeat(grey[..., None], 3, axis=-1)


def times(uneven: bool) -> list[int]:
    return [number + (GAP * max(0, number - SLOW) if uneven else 0) for number in range(COUNT)]


def write(path: Path, codec: str, pix_fmt: str, uneven: bool = False) -> Path:
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    palette[:, 1:] = np.arange(255, -1, -1)[:, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pix_fmt
        for level, time in zip(levels(), times(uneven), strict=True):
            frame = av.VideoFrame.from_ndarray(level if pix_fmt == "gray" else (level, palette), format=pix_fmt)  # type: ignore[arg-type]
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[IndexEntry, Probe, Frames]]:
    """A file of each kind, and one of uneven times, with what probe finds and the frames that were written."""
    folder, found = tmp_path_factory.mktemp("palettes"), {}
    for name, (codec, pix_fmt) in {**FILES, "uneven.mov": ("qtrle", "gray")}.items():
        path = write(folder / name, codec, pix_fmt, uneven=name == "uneven.mov")
        found[name] = entry_of(path, result := probe(path)), result, colours(pix_fmt)
    return found


@pytest.mark.parametrize("name", FILES)
def test_read_clip_of_a_palette_gives_its_colours_from_every_start(name: str, files: dict[str, tuple[IndexEntry, Probe, Frames]]) -> None:
    entry, _, wanted = files[name]
    # Blue shows wherever a colour is taken for transparent.
    options = DecodeOptions(background=(0, 0, 255))
    for known in (entry, replace(entry, decoder="", fps=0.0)):
        for start in (0, 1, 3, 12, 22):
            for on in (False, True):
                (clip,) = read_sizes(known, FrameRange(2, start=start), (None,), replace(options, deinterlace=on))
                assert np.array_equal(clip, wanted[start : start + 2]), (known.decoder, start, on)
            (clip,) = read_sizes(known, FrameRange(2, fps=RATE, start=start / RATE), (None,), options)
            assert np.array_equal(clip, wanted[start : start + 2]), (known.decoder, start)
        piece = replace(known, begin=5 / RATE, end=15 / RATE)
        assert np.array_equal(read_clip(piece, FrameRange(3, start=4)), wanted[9:12])
    assert np.array_equal(read_video(entry.path, 2, 4), wanted[4:6])
    for fps in (None, float(RATE)):
        assert np.array_equal(read_last_frames(entry.path, 2, fps), wanted[-2:]), fps


def test_read_clip_of_a_palette_keeps_uneven_times(files: dict[str, tuple[IndexEntry, Probe, Frames]]) -> None:
    entry, found, wanted = files["uneven.mov"]
    assert found.variable_rate and found.frames == COUNT
    for known in (entry, replace(entry, decoder="", fps=0.0, variable_rate=False)):
        assert np.array_equal(read_clip(known, FrameRange(3, start=14)), wanted[14:17])
        second = times(True)[14] / RATE
        clip = read_clip(known, FrameRange(3, fps=RATE / (1 + GAP), start=second + 0.02))
        assert np.array_equal(clip, wanted[14:17]), known.decoder
        piece = replace(known, begin=second, end=second + 0.5)
        assert np.array_equal(read_clip(piece, FrameRange(2, start=1)), wanted[15:17]), known.decoder


def test_probe_finds_a_palette_that_seeking_loses(
    files: dict[str, tuple[IndexEntry, Probe, Frames]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeking, "loses_palette", lambda stream: False)
    for name in ("qtrle_gray.mov", "raw.avi", "smc.mov"):
        assert probe(files[name][0].path).decoder == COUNTED, name
    for name in ("png.mov", "png.avi"):
        assert probe(files[name][0].path).decoder != COUNTED, name
