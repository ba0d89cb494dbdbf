"""Tell how far reading a video got, and end a file that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from walt_pl.media.media_file import Media
from walt_pl.media.types import MediaError


class ReportingContainer:
    """A container of PyAV that calls a function for each packet and each frame. Everything else is that of the container.

    A packet has at least one byte. So a demuxer that gives more packets than the file has bytes goes round in circles.

    Args:
        container: PyAV's container.
        media: The file or member that it reads.
        progress: Is called for each packet and each frame.
    """

    def __init__(self, container: Any, media: Media, progress: Callable[[], None]) -> None:
        self._container = container
        self._media = media
        self._progress = progress
        self._most = media.length if media.offset >= 0 else media.path.stat().st_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, *streams: Any) -> Iterator[Any]:
        """Yield the packets of some streams.

        Raises:
            MediaError: There are more of them than the file has bytes.
        """
        for number, packet in enumerate(self._container.demux(*streams)):
            if number > self._most:
                raise MediaError(f"{self._media}: not a video that can be read: more packets than its {self._most:,} bytes")
            self._progress()
            yield packet

    def decode(self, *streams: Any) -> Iterator[Any]:
        """Yield the frames of some streams."""
        for packet in self.demux(*streams):
            for frame in packet.decode():
                self._progress()
                yield frame
