"""Signs of life of processes that read data, and messages of the process that waits for them."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

BEAT = 1.0
"""Seconds between two signs of life of a worker."""
TOLD = 30.0
"""Seconds of waiting after which a process says what it waits for; it says so again each time the wait has doubled."""
SELDOM = 600.0
"""Most seconds between two such messages."""
START = 300.0
"""Seconds until the first sign of life of a worker, which has to import torch and the data."""


def give_signs(beats: Any) -> None:
    """Count up the first entry of a shared array from a thread, to the end of this process.

    A stopped process counts no further. Neither does one whose native code keeps Python's lock, so a file in work has its own limit.
    """

    def count() -> None:
        while True:
            beats[0] += 1
            time.sleep(BEAT)

    beats[0] = 1
    threading.Thread(target=count, daemon=True).start()


class Silence:
    """The silence of one process, as another one hears it.

    Only seconds in which the listener itself ran are counted: after Ctrl-Z and fg nobody seems dead.
    """

    def __init__(self) -> None:
        self._heard = -1.0
        self._seconds = 0.0

    def hear(self, beats: float, seconds: float) -> float:
        """Return for how long a process has been silent.

        Args:
            beats: its count of signs now.
            seconds: seconds since this method was called last.
        """
        self._seconds = 0.0 if beats != self._heard else self._seconds + seconds
        self._heard = beats
        return self._seconds

    def limit(self, patience: float) -> float:
        """Return the seconds of silence after which the process counts as dead."""
        return patience if self._heard > 0 else max(patience, START)


@contextlib.contextmanager
def watch_wait(describe: Callable[[], str], check: Callable[[float], None] | None = None, tick: float = BEAT) -> Iterator[None]:
    """Look after the others from a thread while this process waits inside the context, even if native code keeps it waiting.

    Args:
        describe: returns what this process waits for. It is printed to standard error after `TOLD` seconds, and from then on seldom.
        check: is called every `tick` seconds, with these seconds.
        tick: seconds.
    """
    done = threading.Event()

    def look() -> None:
        began, due = time.monotonic(), TOLD
        while not done.wait(tick):
            if check is not None:
                check(tick)
            waited = time.monotonic() - began
            if waited >= due and not done.is_set():
                due = waited + min(max(waited, TOLD), SELDOM)
                print(f"waiting for data for {waited:.0f} seconds: {describe()}", file=sys.stderr, flush=True)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        done.set()
