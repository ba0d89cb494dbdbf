"""Turn interlaced frames into progressive ones, with FFmpeg's `yadif` filter in PyAV.

An interlaced frame holds two half pictures (fields) of different times, line by line. `yadif` computes every other line anew, from the
frame and from the frames before and after it. So a frame travels together with its neighbours until it is picked. Only picked frames
are filtered, and a frame is the same whether a whole file is read or a part of it.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

_Tag = TypeVar("_Tag")


@dataclass(frozen=True)
class Neighbours:
    """A frame between its neighbours in the file or piece."""

    before: Any | None
    """Frame before it; None: it is the first one."""
    frame: Any
    """The frame itself."""
    after: Any | None
    """Frame after it; None: it is the last one."""


def with_neighbours(tagged: Iterable[tuple[Any, _Tag]]) -> Iterator[tuple[Neighbours, _Tag]]:
    """Yield frames between their neighbours. Each keeps its tag, such as its number.

    Args:
        tagged: Frames in order, each with a tag.
    """
    before: Any | None = None
    last: tuple[Any, _Tag] | None = None
    for frame, tag in tagged:
        if last is not None:
            yield Neighbours(before, last[0], frame), last[1]
            before = last[0]
        last = frame, tag
    if last is not None:
        yield Neighbours(before, last[0], None), last[1]


def deinterlace(window: Neighbours) -> Any:
    """Return the progressive frame of an interlaced one, at the time of its first field. Other frames are returned as they are."""
    frame = window.frame
    if not frame.interlaced_frame:
        return frame
    before, after = (_alike(neighbour, frame) for neighbour in (window.before, window.after))
    graph, pushed = _graph(frame), [one for one in (before, frame, after) if one is not None]
    # Without a neighbour, yadif takes the frame itself in its place. The end of the file (None) tells it so.
    for one in pushed if after is not None else [*pushed, None]:
        graph.vpush(one)
    if before is not None:
        graph.vpull()
    return graph.vpull()


def _alike(neighbour: Any | None, frame: Any) -> Any | None:
    """Return a neighbour that has the size and format of a frame. Others would make the filter read outside of their memory."""
    if neighbour is None or (neighbour.width, neighbour.height, neighbour.format.name) != (frame.width, frame.height, frame.format.name):
        return None
    return neighbour


def _graph(frame: Any) -> Any:
    """Return a filter graph for frames like this one. It yields a frame for each that it is given."""
    from av.filter import Graph

    graph = Graph()
    with suppress(AttributeError):  # older PyAV starts a thread for each processor
        graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("yadif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")).configure()
    return graph
