"""Decode a file to find out what it holds. This runs in a process of its own (`run_isolated`): decoders hang and crash."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from walt_pl.indexing.isolated_pool import give_sign
from walt_pl.media.max_pixels import MAX_PIXELS
from walt_pl.media.pillow_reader import ANIMATED
from walt_pl.media.pixel_modes import UNKNOWN_RANGE
from walt_pl.media.probing import Probe, probe, probe_picture
from walt_pl.media.transparency import TRANSPARENT

_SAID = ("too large", ANIMATED, UNKNOWN_RANGE, TRANSPARENT)
"""Findings that readers name themselves, in the first words of their errors."""

_PART = 1 << 20
"""Bytes that are read at once for a hash."""


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A clip or image to be examined: a file, or a member of a tar shard."""

    file: str
    kind: str
    """"video" or "image"."""
    offset: int
    """Byte of the tar shard at which the member begins; -1: the whole file."""
    bytes: int
    """Size of the file or member."""
    modified: int
    """Time of the last change of the file, in nanoseconds since 1970."""
    end: int
    """Size of the file that holds it; -1: the file is missing."""
    decord: bool = True
    """True if decord may be tried."""
    max_pixels: int = MAX_PIXELS
    """Largest rows x columns of an image, or of a frame of a video."""
    pieces: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    """Begin and end in seconds of the pieces to examine; (0, 0) is the whole."""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """The findings of an examination. Fields are index columns of equal name; all are 0 where nothing could be decoded."""

    bytes: int
    modified: int
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    duration: float = 0.0
    decoder: str = ""
    variable_rate: bool = False
    interlaced: bool = False
    hdr: bool = False
    finding: str = ""
    """Reason why the file cannot be used, as one word of `quarantine.FINDINGS`; "" if it can."""
    reason: str = ""
    """The reason in words."""


def probe_media_file(medium: MediaFile) -> list[MediaFacts]:
    """Decode a clip or image from its first frame to its last, and return the facts of each piece.

    This function never raises for a defect of the file.
    """
    plain = MediaFacts(medium.bytes, medium.modified)
    found = _decode(medium, plain)
    return [found if isinstance(found, MediaFacts) else _facts(plain, found, *piece) for piece in medium.pieces]


def _decode(medium: MediaFile, plain: MediaFacts) -> Probe | MediaFacts:
    """Return the probe of the file, or the facts that say why it cannot be used."""
    if medium.end < 0:
        return _bad(plain, "missing", "not a plain file" if os.path.lexists(medium.file) else "no such file")
    if medium.offset >= 0 and medium.offset + medium.bytes > medium.end:
        return _bad(plain, "truncated", f"the shard ends {medium.offset + medium.bytes - medium.end} bytes before it does")
    if medium.bytes == 0:
        return _bad(plain, "corrupt", "the file is empty")
    place = (Path(medium.file), medium.offset, medium.bytes if medium.offset >= 0 else None)
    try:
        if medium.kind == "video":
            found = probe(*place, decord=medium.decord, max_pixels=medium.max_pixels, progress=give_sign)
        else:
            found = probe_picture(*place, max_pixels=medium.max_pixels)
    # On a damaged file a decoder may raise any error, also MemoryError. The file is the cause.
    except Exception as error:
        return _bad(plain, "corrupt", f"{type(error).__name__}: {error}")
    if found.reason:
        reason = found.reason.removeprefix(f"{medium.file}: ")
        said = next((word for word in _SAID if reason.startswith(f"{word}: ")), None)
        finding = said or ("truncated" if "truncated" in reason.lower() else "corrupt")
        return _bad(plain, finding, reason.removeprefix(f"{said}: "))
    return found


def _facts(plain: MediaFacts, whole: Probe, begin: float, end: float) -> MediaFacts:
    found = whole.piece(begin, end)
    if not found.frames:
        limits = f"{begin:g} to {end:g} s" if end else f"{begin:g} s on"
        return _bad(plain, "truncated", f"no frame from {limits}: the file has {whole.duration:.2f} s")
    measured = (found.frames, found.fps, found.width, found.height, found.duration, found.decoder, found.variable_rate)
    return MediaFacts(plain.bytes, plain.modified, *measured, interlaced=found.interlaced, hdr=found.hdr)


def _bad(facts: MediaFacts, finding: str, reason: str) -> MediaFacts:
    return MediaFacts(facts.bytes, facts.modified, finding=finding, reason=" ".join(reason.split()))


def digest(medium: MediaFile) -> str:
    """Return the SHA-256 of the bytes, or "" where they cannot be read."""
    if medium.end < 0:
        return ""
    sha256, left = hashlib.sha256(), medium.bytes
    try:
        with open(medium.file, "rb") as file:
            file.seek(max(0, medium.offset))
            while part := file.read(min(_PART, left)):
                sha256.update(part)
                left -= len(part)
                give_sign()
    except OSError:
        return ""
    return sha256.hexdigest()


def stat_media_file(file: str, kind: str, offset: int = -1, length: int = -1) -> MediaFile:
    """Return the present state of a file on disk. `length` is the size of a member of a tar shard.

    A pipe or device counts as missing: opening it could wait for ever.
    """
    try:
        state = os.stat(file)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return MediaFile(file, kind, offset, 0, 0, -1)
    if not stat.S_ISREG(state.st_mode):  # a pipe would wait for ever
        return MediaFile(file, kind, offset, 0, 0, -1)
    return MediaFile(file, kind, offset, state.st_size if offset < 0 else length, state.st_mtime_ns, state.st_size)
