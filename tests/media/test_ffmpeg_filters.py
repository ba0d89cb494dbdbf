"""Filters in the commands that people are told to type, in PyAV's filter graph: each gives the colours that a viewer shows."""

from __future__ import annotations

import re
import shlex
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.media.test_transparency import COLOUR, thirds, write
from walt_pl.media.extensions import NOT_READ
from walt_pl.media.pillow_reader import _VIDEO_COMMANDS
from walt_pl.media.probing import probe
from walt_pl.media.types import Frames

RED, HIDDEN, HALF = (200, 40, 0, 255), (0, 0, 255, 0), (0, 200, 0, 128)


def filter_of(command: str) -> str:
    """Return the filter of a command of ffmpeg that writes an mp4."""
    words = shlex.split(command.rpartition("&& ")[2])
    assert words[0] == "ffmpeg" and words[-1] == "a.mp4"
    return words[words.index("-vf") + 1]


def graph_of(text: str, frame: av.VideoFrame) -> av.filter.Graph:
    """Build the graph of a filter as ffmpeg does: chains between semicolons, joined by labels in brackets."""
    graph, joints = av.filter.Graph(), {}
    last: Any = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    for chain in text.split(";"):
        taken, filters, given = re.fullmatch(r"((?:\[\w+])*)(.*?)((?:\[\w+])*)", chain).groups()  # type: ignore[union-attr]
        for number, one in enumerate(filters.split(",")):
            before, last = last, graph.add(*one.split("=", 1))
            labels = re.findall(r"\w+", taken) if number == 0 else []
            for place, label in enumerate(labels):
                joints[label][0].link_to(last, joints[label][1], place)
            if not labels:
                before.link_to(last)
        joints |= {label: (last, place) for place, label in enumerate(re.findall(r"\w+", given))}
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def filtered(text: str, frames: list[av.VideoFrame]) -> list[av.VideoFrame]:
    graph = graph_of(text, frames[0])
    for frame in [*frames, None]:
        graph.push(frame)
    shown = []
    while True:
        try:
            shown.append(graph.vpull())
        except (BlockingIOError, EOFError):
            return shown


def picture(height: int, width: int, shift: int = 0) -> Frames:
    """Three columns of 8 pixels: opaque red, transparent blue, and green that is half transparent. The rest is red."""
    pixels = np.full((height, width, 4), RED, np.uint8)
    pixels[:, 8 + shift : 16 + shift], pixels[:, 16 + shift : 24 + shift] = HIDDEN, HALF
    return pixels


COMMANDS = {"gif": NOT_READ["gif"], "apng": NOT_READ["apng"], **_VIDEO_COMMANDS}


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (31, 48), (32, 45)])
@pytest.mark.parametrize("command", COMMANDS)
def test_command_for_animated_pictures_shows_white_where_they_are_transparent(command: str, size: tuple[int, int], tmp_path: Path) -> None:
    text = filter_of(COMMANDS[command])
    for name, half in (("a.png", (127, 227, 127)), ("a.gif", None)):
        frames = [Image.fromarray(picture(*size, shift)) for shift in (0, 4, 8)]
        disposal = 0 if half else 2
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[500, 100, 300], disposal=disposal)
        with av.open(str(tmp_path / name), format="apng" if half else "gif") as container:
            decoded = list(container.decode(video=0))
        for frame in decoded:
            assert frame.pts is not None and frame.time_base is not None
            frame.pts, frame.time_base = round(frame.pts * frame.time_base * 1000), Fraction(1, 1000)
        assert any(component.is_alpha for component in decoded[0].format.components)
        shown = filtered(text, decoded)
        assert [round((frame.pts or 0) * float(frame.time_base or 0) * 1000) for frame in shown] == [0, 500, 600], "times stay"
        for frame, shift in zip(shown, (0, 4, 8), strict=True):
            assert (frame.height, frame.width, frame.format.name) == (size[0] // 2 * 2, size[1] // 2 * 2, "yuv420p")
            pixels = frame.to_ndarray(format="rgb24").astype(int)
            wanted = {3: RED[:3], 11 + shift: (255, 255, 255), **({19 + shift: half} if half else {})}
            for column, colour in wanted.items():
                assert np.abs(pixels[:, column] - colour).max() <= 4, (name, column)


def test_command_for_a_webm_with_alpha_shows_white_where_it_is_transparent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", "libvpx-vp9", "yuva420p")
    text = filter_of(probe(path).reason.partition("VP8): ")[2])
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(path)) as container:
        decoded = [frame for packet in container.demux(video=0) for frame in decoder.decode(packet)]
    assert all(isinstance(frame, av.VideoFrame) and frame.format.name == "yuva420p" for frame in decoded)
    shown = filtered(text, decoded)  # type: ignore[arg-type]
    assert len(shown) == 6
    colour = np.array(COLOUR)
    wanted = [np.full(3, 255), 255 + (colour - 255) * 128 / 255, colour]
    assert np.abs(np.array(thirds(np.stack([frame.to_ndarray(format="rgb24") for frame in shown]))) - wanted).max() <= 6
