"""Progress of an evaluation on standard error: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def show_progress(words: str, total: int, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how many clips are done and the time left, and yield the function that adds clips.

    Args:
        words: name of the work.
        total: number of clips.
        show: show nothing if false, as on all processes but one.
    """
    if not show:
        yield lambda clips: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(words, total).add
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(words, total=total)
        yield lambda clips: bar.advance(task, clips)


class _Lines:
    """Prints a line every half minute, for logs of jobs."""

    def __init__(self, words: str, total: int) -> None:
        self.words = words
        self.total = total
        self.done = 0
        self.started = time.monotonic()
        self.printed = self.started

    def add(self, clips: int) -> None:
        self.done += clips
        now = time.monotonic()
        if now - self.printed < EVERY:
            return
        self.printed = now
        left = timedelta(seconds=round((now - self.started) / self.done * (self.total - self.done)))
        print(f"{self.words}: {self.done:,} of {self.total:,}, {left} left", file=sys.stderr, flush=True)
