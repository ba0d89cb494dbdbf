"""Read a run whose stages another process may replace at the same time.

An artifact is replaced by two renames, and its record in the manifest follows. A reader that comes in between finds bytes that no record
describes. It reads again once the record is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from walt_pl.runs.card import CARD
from walt_pl.runs.manifest import Manifest

PATIENCE = 20.0
"""Seconds to wait until a replaced artifact has its record. Writing it takes milliseconds on a local disk."""

T = TypeVar("T")


def read_settled(manifest: Manifest, read: Callable[[], T], failed: Callable[[T], bool]) -> T:
    """Read a run, and again if it failed while a stage was replaced.

    Args:
        manifest: of the run.
        read: reads the run.
        failed: whether the result is of a run in between.

    Raises:
        ValueError: of `read`, where no stage is being replaced.
        OSError: of `read`, where no stage is being replaced.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        before, error = _marks(manifest), None
        try:
            result = read()
            if not failed(result):
                return result
        except (ValueError, OSError) as found:
            error = found
        settled = before == _marks(manifest) and not _is_replaced(manifest)
        if settled or time.monotonic() > deadline:
            if error is not None:
                raise error
            return result
        time.sleep(0.05)


def _marks(manifest: Manifest) -> list[tuple[int, ...] | None]:
    """Return identity, size and time of the manifest and of every card. Each replacement changes them."""
    return [_mark(manifest.path), *(_mark(manifest.run_dir / path / CARD) for path in _artifacts(manifest))]


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _artifacts(manifest: Manifest) -> list[str]:
    return [stage.artifact.path for stage in manifest.stages().values() if stage.artifact is not None]


def _is_replaced(manifest: Manifest) -> bool:
    """Return whether a living training has replaced the artifact of its stage, and the record is still of the one before."""
    for stage in manifest.stages().values():
        training, done = stage.training, stage.artifact
        if done is None or training is None or training.stop is not None or training.holder.alive() is False or CARD not in done.files:
            continue
        mark = _mark(manifest.run_dir / done.path / CARD)
        if mark is None or mark[1:] != (done.files[CARD].bytes, done.files[CARD].mtime_ns):
            return True
    return False
