"""Locks of files that several processes write: of a manifest, an index, a cache, an artifact. A lock names its holder.

A lock is a file. Its holder has made it, has written its name into it, and keeps it locked (flock) to the end. On one machine the lock of
a holder that has ended is told from that of a living one; a reused process id is told by the start of the process. The lock of a holder on
another host, or in a container of another name, is left alone. A process that waits for its work takes it over after it has seen no sign of
life for `SILENCE` seconds; one that does not wait names the file to remove.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from walt_pl.plain_records import build_record, check_range, check_time
from walt_pl.untrusted import parse_json

LOCK_WAIT = 10.0
"""Seconds to wait for another process whose work takes milliseconds, such as writing a manifest."""
REMINDER = 60.0
"""Seconds between two lines of a process that waits for another one."""
SIGN = 20.0
"""Seconds between two signs of life of a holder: it sets the time of its lock file."""
SILENCE = 900.0
"""Seconds without a sign after which the lock of another machine is taken over. Both times are those of the waiting process."""
MAX_LOCK_BYTES = 4096
"""Bytes of a lock file that are read."""
MAX_PID = 2**31 - 1
"""Largest number of a process."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system that has no locks of its own."""


class LockHeld(ValueError):
    """Another process holds a lock. The message names it and ends with what to type."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock or trains a stage."""

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


def lock_beside(path: Path) -> Path:
    """Return the path of the lock of a file or folder: a hidden file beside it."""
    path = path.absolute()
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def hold_lock(path: Path, wait: float | None = None, work: str = "", refusal: type[ValueError] = LockHeld) -> Iterator[None]:
    """Hold the lock file `path` inside the context.

    Args:
        path: path of the lock. Its folder exists.
        wait: seconds to wait for another holder; `LOCK_WAIT` if not set.
        work: the work that the lock is for. With it, this process waits as long as it takes. A line on standard error says for whom, at
            once and every `REMINDER` seconds. An index or a cache may take hours, and the second command has its own rows to add.
        refusal: class of the error.

    Raises:
        LockHeld: another process still holds it after `wait` seconds; of the class `refusal`.
        OSError: the file system is full or cannot be written.
    """
    began, reminder, watched = time.monotonic(), 1.0, _Watched()
    while isinstance(held := _take(path, watched), str):
        waited, remove = time.monotonic() - began, f"rm {shlex.quote(str(path))}"
        if not work and waited > (LOCK_WAIT if wait is None else wait):
            raise refusal(f"{path} is held by {held}: wait for it, or if that process is gone type: {remove}")
        if work and waited > reminder:
            reminder = waited + REMINDER
            print(f"{work}: waiting for {held}; if that process is gone type: {remove}", file=sys.stderr, flush=True)
        time.sleep(0.05 if waited < 10 else 0.5)
    done = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(held, done), daemon=True)
    if work:
        signs.start()
    try:
        yield
    finally:
        done.set()
        if work:
            signs.join()  # it uses the file that is closed now
        with held:
            if _is_same(held, path):  # otherwise a person has removed it, and another process may have its own
                path.unlink(missing_ok=True)


@dataclass
class _Watched:
    """The lock of another machine, as the waiting process has seen it change."""

    signs: tuple[int, int, int] = (0, 0, 0)
    """Inode, size and time of the lock file."""
    since: float = 0.0
    """Time on this process's monotonic clock at which they were first seen."""

    def seconds_silent(self, file: TextIO) -> float:
        """Return for how many seconds the file has not changed."""
        found = os.fstat(file.fileno())
        signs = (found.st_ino, found.st_size, found.st_mtime_ns)
        if signs != self.signs:
            self.signs, self.since = signs, time.monotonic()
        return time.monotonic() - self.since


def _take(path: Path, watched: _Watched) -> TextIO | str:
    """Try once to acquire the lock. Return the open, locked file if it is ours now, otherwise its holder in words."""
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "r+", encoding="utf-8")
        made = True
    except FileExistsError:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "r+", encoding="utf-8")
        except FileNotFoundError:
            return "a process that let go of it just now"
        except OSError as error:
            raise LockHeld(f"{path} cannot be opened as a lock ({error}): move it away") from None
        made = False
    with contextlib.ExitStack() as closing:
        closing.enter_context(file)
        if made:
            closing.callback(path.unlink, missing_ok=True)  # it could not be written
        free, holder = _flock(file), _read_holder(file)
        while made and free is False and holder is None:  # another process has just seen that there is no name yet
            time.sleep(0.001)
            free, holder = _flock(file), _read_holder(file)
        ours = free is not False and _is_same(file, path)
        if not ours or (not (made and holder is None) and not _is_left_over(holder, watched.seconds_silent(file))):
            closing.pop_all()  # another process has taken it over meanwhile: its file stays
            file.close()
            gone = "a process that let go of it just now" if free is not False and not ours else "a process that has not said its name yet"
            return str(holder or gone)
        if not made:
            told = f"{path} was held by {holder or 'a process without a name'}, which is gone: taken over"
            warnings.warn(told, RuntimeWarning, stacklevel=4)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(dataclasses.asdict(Holder.here())))
        file.flush()
        closing.pop_all()
        return file


def _is_left_over(holder: Holder | None, silent: float) -> bool:
    """Return whether the holder of a lock file that nobody keeps locked is gone.

    Args:
        holder: the name in the file; None if there is none: its maker has died, or writes it just now.
        silent: seconds for which the file has not changed.
    """
    if holder is None:
        return silent > 1.0
    alive = holder.alive()
    return silent > SILENCE if alive is None else not alive


def _flock(file: TextIO) -> bool | None:
    """Lock an open file. Return False if another process has locked it, None if this file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _give_signs(file: TextIO, done: threading.Event) -> None:
    while not done.wait(SIGN):
        with contextlib.suppress(OSError):
            os.utime(file.fileno())


def _is_same(file: TextIO, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _read_holder(file: TextIO) -> Holder | None:
    try:
        return build_record(Holder, parse_json(os.pread(file.fileno(), MAX_LOCK_BYTES, 0), "lock"), "lock")
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
