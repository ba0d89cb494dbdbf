"""Types of the package: frames, sizes, an entry that can be read, and the error of a file that cannot."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Size = tuple[int, int]
"""Rows and columns."""

COUNTED = "pyav-counted"
"""Decoder of a file whose times do not lead to its frames: PyAV, which counts them from the first one on."""


class UnorderedTimesError(Exception):
    """Times of frames that are missing, or do not increase in the order of display. Such frames are found by counting."""


class MediaError(RuntimeError):
    """A file that cannot be read or written. The message starts with its path."""


class MediaEntry(Protocol):
    """The properties of an index entry that reading needs: a file, a member of a tar shard, or a piece of either."""

    @property
    def path(self) -> Path:
        """Return the path of the file, or of the tar shard."""
        ...

    @property
    def offset(self) -> int:
        """Return the byte of the tar shard at which the member begins; -1: `path` is the file itself."""
        ...

    @property
    def bytes(self) -> int:
        """Return the size of the file or member when it was indexed."""
        ...

    @property
    def begin(self) -> float:
        """Return the second of the file at which the piece begins."""
        ...

    @property
    def end(self) -> float:
        """Return the second of the file before which the piece ends; 0: at the end of the file."""
        ...

    @property
    def fps(self) -> float:
        """Return the frames per second of the file on average; 0 for an image."""
        ...

    @property
    def variable_rate(self) -> bool:
        """Return whether the frames of the file are not evenly spaced in time."""
        ...

    @property
    def decoder(self) -> str:
        """Return the decoder that reads the file correctly: "decord", "pyav", `COUNTED` or "pillow". Empty: not examined."""
        ...


def reason(error: BaseException) -> str:
    """Return the message of an error, without its number where the system gives one."""
    return getattr(error, "strerror", None) or str(error)
