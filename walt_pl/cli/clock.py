"""Seconds of the parts of a command that may be interrupted and goes on."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from walt_pl.files import write_whole
from walt_pl.untrusted import read_json


class Clock:
    """Measure the seconds of each part, over all starts of an interrupted command.

    Args:
        path: file of the seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    @property
    def minutes(self) -> float:
        """Minutes of all parts together."""
        return sum(self.seconds.values()) / 60

    @contextmanager
    def counts(self, part: str) -> Iterator[None]:
        """Count the time of a block, even if it is interrupted."""
        began, before = time.monotonic(), self.seconds.get(part, 0.0)
        try:
            yield
        finally:
            self.seconds[part] = before + time.monotonic() - began
            write_whole(self.path, json.dumps(self.seconds).encode())
