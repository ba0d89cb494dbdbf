"""Write and read colours, and compare them with the formulas of ITU-R BT.601, BT.709 and BT.2020."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray

from tests.helpers.clips import counting_clip, entry_of, textured_clip
from walt_pl.media.reading import read_clip, read_image, read_video
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames
from walt_pl.media.writing import write_image, write_video

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Weights of red and blue in luma: BT.601-7 2.5.1, BT.709-6 3.2, BT.2020-2 table 4."""
COLOURS = np.array(list(product((0, 64, 128, 191, 255), repeat=3)), np.uint8)
GRID = (9, 14)


def patches(height: int, width: int) -> Frames:
    """Draw a flat patch of each colour, [h w 3]."""
    cells = np.zeros((*GRID, 3), np.uint8)
    cells.reshape(-1, 3)[: len(COLOURS)] = COLOURS
    rows, columns = np.arange(height) * GRID[0] // height, np.arange(width) * GRID[1] // width
    return cells[rows][:, columns]


def means(picture: NDArray[np.uint8] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean colour in the middle of each patch."""
    height, width = picture.shape[0] / GRID[0], picture.shape[1] / GRID[1]
    places = [divmod(number, GRID[1]) for number in range(len(COLOURS))]
    return np.array(
        [
            picture[int((y + 0.3) * height) : int((y + 0.7) * height), int((x + 0.3) * width) : int((x + 0.7) * width)].mean((0, 1))
            for y, x in places
        ]
    )


def to_rgb(frame: av.VideoFrame, matrix: str) -> NDArray[np.float64]:
    """Convert the planes of a limited-range yuv420p frame to RGB, 0 to 255, by the formula."""
    red, blue = WEIGHTS[matrix]
    planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width] for plane in frame.planes]
    luma = (planes[0] - 16.0) / 219
    cb, cr = ((plane.repeat(2, 0).repeat(2, 1) - 128.0) / 224 for plane in planes[1:])
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return np.clip(255 * np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], -1), 0, 255)


def to_yuv(picture: Frames, matrix: str, full: bool) -> av.VideoFrame:
    """Convert RGB to a frame of 4:2:0 by the formula."""
    red, blue = WEIGHTS[matrix]
    r, g, b = np.moveaxis(picture / 255, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    scales = ((255, 0), (255, 128)) if full else ((219, 16), (224, 128))
    chroma = [(b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)]
    halves = [plane.reshape(len(plane) // 2, 2, -1, 2).mean((1, 3)) for plane in chroma]
    planes = [(luma * scales[0][0] + scales[0][1]), *(plane * scales[1][0] + scales[1][1] for plane in halves)]
    flat = np.concatenate([np.clip(np.round(plane), 0, 255).astype(np.uint8).ravel() for plane in planes])
    return av.VideoFrame.from_ndarray(flat.reshape(-1, picture.shape[1]), format="yuvj420p" if full else "yuv420p")


def decode(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.fixture(scope="module", params=[720, 256], ids="{} rows".format)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of flat patches that our encoder wrote."""
    path = tmp_path_factory.mktemp("colour") / "a.mp4"
    write_video(path, np.stack([patches(request.param, request.param * 16 // 9 // 2 * 2)] * 2), fps=8)
    return path


def test_write_video_is_bt709_of_limited_range(written: Path) -> None:
    frame = decode(written)
    assert np.abs(means(to_rgb(frame, "bt709")) - COLOURS).max() < 2.5
    assert np.abs(means(to_rgb(frame, "bt601")) - COLOURS).max() > 25, "the formula tells the two apart"


def test_write_video_tags_bt709_in_the_stream_and_in_the_container(written: Path, tmp_path: Path) -> None:
    # Primaries, transfer function, matrix: 1 is BT.709 (ITU-T H.273). The last bit is 0 for limited range.
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in written.read_bytes()
    plain = tmp_path / "a.h264"
    with av.open(str(written)) as container:
        stream = container.streams.video[0]
        annexb = BitStreamFilterContext("h264_mp4toannexb", stream)
        plain.write_bytes(b"".join(bytes(part) for packet in container.demux(stream) if packet.size for part in annexb.filter(packet)))
    frame = decode(plain)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)


def test_write_video_colours_are_read_back_by_pyav_and_by_decord(written: Path) -> None:
    decord = pytest.importorskip("decord")  # an FFmpeg of its own, of another age
    theirs = decord.VideoReader(str(written), num_threads=1)[0].asnumpy()
    for found in (read_video(written, 1)[0], theirs):
        off = np.abs(means(found) - COLOURS)
        assert off.mean() < 1.2 and off.max() <= 4


def test_write_video_keeps_edges_between_colours(tmp_path: Path) -> None:
    for clip, least in ((counting_clip(9), 52), (textured_clip(9, 64, 64), 34.5)):
        write_video(tmp_path / "a.mp4", clip, fps=8)
        off = read_video(tmp_path / "a.mp4", len(clip)).astype(float) - clip
        assert 10 * np.log10(255**2 / (off**2).mean()) > least


@pytest.mark.parametrize("height", [128, 720])
@pytest.mark.parametrize(
    ("matrix", "full", "tag"),
    [
        ("bt601", False, None),
        ("bt601", False, "smpte170m"),
        ("bt601", True, "smpte170m"),
        ("bt709", False, "bt709"),
        ("bt709", True, "bt709"),
        ("bt2020", False, "bt2020nc"),
    ],
)
def test_read_clip_colours_are_those_of_the_tags(matrix: str, full: bool, tag: str | None, height: int, tmp_path: Path) -> None:
    """An untagged file is BT.601 of limited range, at any size."""
    path = tmp_path / "a.mp4"
    picture = patches(height, height * 16 // 9 // 4 * 4)
    with av.open(str(path), "w") as container:
        colorspace = {} if tag is None else {"colorspace": tag, "color_range": "pc" if full else "tv"}
        stream = container.add_stream("libx264", rate=8, options={"crf": "10", "preset": "veryfast", **colorspace})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuvj420p" if full else "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(to_yuv(picture, matrix, full)))
        container.mux(stream.encode())
    entry = entry_of(path)
    for decoder in {entry.decoder, "pyav"}:
        off = np.abs(means(read_clip(replace(entry, decoder=decoder), FrameRange(1))[0]) - COLOURS)
        assert off.mean() < 1.2 and off.max() <= 4, (decoder, off.mean(), off.max())


def test_write_image_colours_are_read_back(tmp_path: Path) -> None:
    for name, most in (("a.png", 0), ("a.jpg", 2)):
        write_image(tmp_path / name, patches(144, 224))
        assert np.abs(means(read_image(tmp_path / name)[0]) - COLOURS).max() <= most
