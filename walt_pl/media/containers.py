"""Containers that decoders may open.

FFmpeg recognises a format by its content. Playlists, lists of files, and session descriptions (HLS, DASH, concat, SDP, image patterns)
name other files, devices or addresses, which FFmpeg then opens. No such format is on these lists.
"""

from walt_pl.media.extensions import kind_of
from walt_pl.media.media_file import Media

DEMUXERS = ("mov", "matroska", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "flv", "ogg", "h264", "hevc", "m4v")
"""FFmpeg's demuxers of the video files in `extensions.VIDEOS`, and of the plain streams that may be in such files."""
_BOXES = frozenset([b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"])
"""First boxes of mp4 and mov files."""
_HEADER = 1 << 16


def is_open_to_decord(media: Media) -> bool:
    """Return whether decord's FFmpeg must take a file for mp4, mov, Matroska, WebM or AVI.

    decord has no list of allowed formats, and its older FFmpeg may recognise another format than PyAV's. The first bytes decide, as
    in both. A name with % may be a pattern of other names.

    Raises:
        OSError: the file cannot be read.
    """
    if "%" in str(media.path) or (media.offset < 0 and kind_of(media.path.name) == "image"):
        return False
    with open(media.path, "rb") as file:
        file.seek(max(0, media.offset))
        header = file.read(_HEADER if media.offset < 0 else min(media.length, _HEADER))
    if header[4:8] in _BOXES:
        return header[:1] == b"\0"  # text cannot begin with it
    binary = header[:4] == b"\x1a\x45\xdf\xa3" or (header[:4] == b"RIFF" and header[8:12] == b"AVI ")
    return binary and b"<mpd" not in header.lower()  # DASH is recognised anywhere in the beginning
