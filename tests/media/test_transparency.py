"""Videos with alpha: in every codec that PyAV writes and reads."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.clips import entry_of
from tests.helpers.image_files import PALETTE, png
from walt_pl.indexing.probe_file import probe_media_file, stat_media_file
from walt_pl.media.decode_options import WHITE, DecodeOptions
from walt_pl.media.probing import Probe, probe
from walt_pl.media.reading import read_clip, read_last_frames, read_sizes
from walt_pl.media.spans import FrameRange
from walt_pl.media.transparency import blend
from walt_pl.media.types import Frames, MediaError

ROOT = Path(__file__).parents[2]
BLUE = (10, 20, 200)
COLOUR = (200, 40, 0)
FILES = {
    "prores.mov": ("prores_ks", "yuva444p10le", 2),
    "qtrle.mov": ("qtrle", "argb", 0.51),
    "png.mov": ("png", "rgba", 0.51),
    "raw.mov": ("rawvideo", "argb", 0.51),
    "ffv1.mkv": ("ffv1", "bgra", 0.51),
    "ffv1_yuv.mkv": ("ffv1", "yuva420p", 2),
    "utvideo.avi": ("utvideo", "gbrap", 0.51),
}
"""Codec, pixel format, and levels that rounding may differ by."""


def write(path: Path, codec: str, pix_fmt: str, frames: int = 6) -> Path:
    """Write a clip of one colour: the left third is transparent, the middle half so, and the right third opaque."""
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[..., :3] = COLOUR
    picture[..., 3] = np.repeat([0, 128, 255], 32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        stream.codec_context.thread_count = 1
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode())
    return path


def thirds(clip: Frames) -> list[list[int]]:
    """Return the colour of the middle of each third of the first frame."""
    return [clip[0, 32, column].tolist() for column in (16, 48, 80)]


@pytest.mark.parametrize("name", FILES)
def test_read_sizes_shows_the_background_through_a_video(name: str, tmp_path: Path) -> None:
    codec, pix_fmt, tolerance = FILES[name]
    path = write(tmp_path / name, codec, pix_fmt)
    entry = entry_of(path)
    assert entry.decoder == "pyav" and entry.frames == 6, "decord drops alpha"
    for background in ((255, 255, 255), BLUE):
        ground, colour = np.array(background), np.array(COLOUR)
        wanted = [ground, ground + (colour - ground) * 128 / 255, colour]
        for listed in (entry, replace(entry, decoder="decord")):  # as an older index names it
            (clip,) = read_sizes(listed, FrameRange(5), (None,), DecodeOptions(background=background))
            assert np.abs(np.array(thirds(clip)) - wanted).max() <= tolerance
        assert np.abs(np.array(thirds(read_last_frames(path, 2, background=background))) - wanted).max() <= tolerance


def test_read_clip_shows_the_background_through_colours_of_a_palette(tmp_path: Path) -> None:
    picture = png(np.repeat([[0, 1, 2]], 32, 1).repeat(64, 0), 8, PALETTE, PLTE=bytes(COLOUR) * 3, tRNS=bytes([0, 128, 255]))
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "pal8"
        for number in range(3):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.duration = stream, number, number, Fraction(1, 8), 1
            container.mux(packet)
    entry = entry_of(tmp_path / "a.mov")
    assert entry.decoder == "pyav" and thirds(read_clip(entry, FrameRange(2))) == [[255, 255, 255], [227, 147, 127], list(COLOUR)]


def test_read_clip_ignores_the_reserved_byte_of_a_raw_avi(tmp_path: Path) -> None:
    path = write(tmp_path / "raw.avi", "rawvideo", "bgra")
    for entry in (entry_of(path), entry_of(path, decoder="pyav")):
        assert thirds(read_clip(entry, FrameRange(5))) == [list(COLOUR)] * 3


def test_open_av_refuses_alpha_beside_vp9_with_what_to_type(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", "libvpx-vp9", "yuva420p")
    said = "transparent: found alpha beside vp9, which is not decoded, wanted an opaque video; put it over a background"
    listed = entry_of(path, Probe(), decoder="decord", frames=6, fps=8.0)  # as an older index has it
    for read in (lambda: read_last_frames(path, 2), lambda: read_clip(listed, FrameRange(5))):
        with pytest.raises(MediaError, match=f"^{path}: {said} .*ffmpeg -c:v libvpx-vp9 -i a.webm"):
            read()
    assert probe(path).reason.startswith(said)
    (facts,) = probe_media_file(stat_media_file(str(path), "video"))
    assert facts.finding == "transparent" and facts.reason.startswith("found alpha beside vp9")
    opaque = write(tmp_path / "b.webm", "libvpx-vp9", "yuv420p")
    assert probe(opaque).frames == 6


def test_blend_is_the_formula_rounded_to_the_nearest() -> None:
    colour, opacity = np.mgrid[:256, :256].astype(np.uint8)
    picture = np.stack([colour, colour, colour, opacity], -1)
    wanted = colour * (opacity / 255) + np.array([255, 128, 3])[:, None, None] * (1 - opacity / 255)
    assert np.abs(blend(picture, (255, 128, 3)).transpose(2, 0, 1) - wanted).max() <= 0.5


def test_white_of_backgrounds_is_written_once() -> None:
    code = [path.read_text(encoding="utf-8") for package in ("walt_pl", "datamodules", "stages") for path in (ROOT / package).rglob("*.py")]
    assert sum(text.count("(255, 255, 255)") for text in code) == 1
    assert DecodeOptions().background == WHITE == (255, 255, 255)
