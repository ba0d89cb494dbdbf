"""A file that holds a video or an image: by itself, or as a member of a tar shard."""

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from walt_pl.media.types import MediaError, reason


@dataclass(frozen=True)
class Media:
    """A file, or a member of a tar shard."""

    path: Path
    offset: int = -1
    length: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.offset < 0 else f"{self.path}, member at byte {self.offset}"

    @property
    def url(self) -> str:
        """Return FFmpeg's name for it."""
        path = self.path.absolute()  # a relative path may look like a URL
        return f"file:{path}" if self.offset < 0 else f"subfile,,start,{self.offset},end,{self.offset + self.length},,:{path}"

    def check(self) -> int:
        """Check that there is something to read, and return the size of the file in bytes.

        Raises:
            MediaError: The file is missing, no plain file (a pipe would wait for ever) or empty, or the shard ends before the member does.
        """
        try:
            state = self.path.stat()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise MediaError(f"{self}: no such file" + ("" if isinstance(error, FileNotFoundError) else f" ({reason(error)})")) from error
        if not stat.S_ISREG(state.st_mode):
            raise MediaError(f"{self}: no such file (a folder, pipe or device has this name)")
        size = state.st_size
        if size == 0 or (self.offset >= 0 and self.length <= 0):
            raise MediaError(f"{self}: the file is empty")
        if self.offset >= 0 and self.offset + self.length > size:
            raise MediaError(f"{self}: truncated: the shard ends {self.offset + self.length - size} bytes before the member does")
        return size

    def open(self) -> BinaryIO:
        """Return the opened file, or the bytes of a member as a file in memory."""
        if self.offset < 0:
            return open(self.path, "rb")
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.length))
