"""The lock of a run's manifest. It names its holder, so that no process waits for a holder that has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from walt_pl.plain_records import build_record, check_range, check_time
from walt_pl.runs.stage_names import ManifestError
from walt_pl.untrusted import parse_json

LOCK_WAIT = 10.0
"""Seconds to wait for another process that writes the manifest. Writing takes milliseconds."""


MAX_LOCK_CHARACTERS = 4096
"""Characters of a lock file that are read."""
MAX_PID = 2**31 - 1
"""Largest number of a process."""


class LockedManifest(ManifestError):
    """Another process holds the lock of the manifest, or trains the stage."""


@dataclass(frozen=True)
class Holder:
    """A process that holds the lock or trains a stage."""

    host: str
    pid: int
    born: int | None
    """Start of the process in clock ticks since boot, since containers reuse the same few process ids. None without /proc."""
    time: str
    """Time since which it holds the lock or trains, UTC."""

    def __post_init__(self) -> None:
        check_range(self.pid, "pid", MAX_PID, 1)  # 0 and -1 stand for many processes, and the number is shown after `kill`
        check_time(self.time, "time")

    @classmethod
    def here(cls) -> Holder:
        """Return this process as the holder, since now."""
        return cls(platform.node(), os.getpid(), _born(os.getpid()), now())

    def alive(self) -> bool | None:
        """Return whether the process still runs; None for a process on another host, which cannot be checked."""
        if self.host != platform.node():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # the process of another user, and alive
        return self.born is None or self.born == _born(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.time})"


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` inside the context.

    Raises:
        LockedManifest: another process still holds it after `LOCK_WAIT` seconds.
    """
    deadline = time.monotonic() + LOCK_WAIT
    while (holder := _take(path)) is not None:
        if time.monotonic() > deadline:
            raise LockedManifest(f"{path} is held by {holder}: wait for it, or remove the file if that process is gone")
        time.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path) -> Holder | str | None:
    """Try once to acquire the lock. Return None if it is ours now, otherwise its holder."""
    mine = json.dumps(dataclasses.asdict(Holder.here()))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mine)
        return None
    except FileExistsError:
        pass
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two processes that find one dead holder take over one after the other
            holder = _holder(file.read(MAX_LOCK_CHARACTERS))
            dead = holder.alive() is False if holder else time.time() - os.fstat(file.fileno()).st_mtime > 1.0
            if not dead or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return holder or "a process that has not said its name yet"
            told = f"{path} was held by {holder or 'a process without a name'}, which is gone: taken over"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            file.seek(0)
            file.truncate()
            file.write(mine)
        return None
    except FileNotFoundError:
        return "a process that let go of it just now"


def _holder(text: str) -> Holder | None:
    try:
        return build_record(Holder, parse_json(text, "lock"), "lock")
    except ValueError:
        return None


def now() -> str:
    """Return the present time as text: UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _born(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; None if it has ended or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
