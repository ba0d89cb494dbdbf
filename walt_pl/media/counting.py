"""Count the frames of a video without decoding them."""

from pathlib import Path

from walt_pl.media.media_file import Media
from walt_pl.media.probing import check_end
from walt_pl.media.progress import ReportingContainer
from walt_pl.media.pyav import open_av
from walt_pl.media.types import MediaError


def count_frames(path: Path) -> int:
    """Return the number of frames of a video: its packets that are shown.

    The whole file is read, but nothing is decoded. A packet that is damaged inside counts as a frame, and reading it will fail.

    Raises:
        MediaError: The file is missing, is no video, or is truncated. The message starts with its path.
    """
    media = Media(path)
    media.check()
    with open_av(media) as (opened, stream):
        container = ReportingContainer(opened, media, lambda: None)
        packets, shown, end = 0, 0, 0.0
        for packet in container.demux(stream, *container.streams.audio):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream and packet.size:
                packets += 1
                shown += not packet.is_discard
        check_end(media, container, stream, packets, end)
    if not shown:
        raise MediaError(f"{media}: no frame in it")
    return shown
