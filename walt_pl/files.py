"""Atomic writes of files and folders, their hashes, and checks of files from strangers.

Every file of ours (artifacts, checkpoints, indices, caches, videos, figures) is written by `whole_file` or `write_whole`. Renames and syncs
are here alone (tests/test_floors.py).
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_DAY = 86_400.0
"""Age in seconds of a temporary file of another machine, from which on it counts as left over."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS)
"""Errors of file systems that sync files, but no folders."""
_hashes: dict[tuple[str | int, ...], str] = {}


# ---- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; at the end of the block, sync it and rename it to `path`.

    A crash or an error leaves the old file or the new one, never a part. Two processes may write to one path: the last one wins. The
    temporary file is new and locked (flock), and its name is its own: processes in two containers may have one process id.

    Raises:
        OSError: the file cannot be written; no temporary file is left behind. The error names a file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{_host()}{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _flock(handle)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # writing to an open file names none
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old bytes or the new ones, never a part; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def is_temporary_of(name: str, path: Path | str) -> bool:
    """Return whether a file name is that of a temporary file that a crash of `whole_file` left beside a path."""
    return re.fullmatch(rf"\.{re.escape(Path(path).name)}\.\d+(\.[0-9a-f]{{16}})?\.tmp", name) is not None


def remove_left_overs(path: Path) -> None:
    """Remove the temporary files that crashes of `whole_file` left beside a path.

    A file is left over if its writer ran on this machine and has ended, or if it was last written a day ago. Links and folders stay.
    """
    with contextlib.suppress(OSError), os.scandir(path.absolute().parent) as entries:
        for entry in entries:
            if is_temporary_of(entry.name, path) and _is_left_over(entry.path):
                os.unlink(entry.path)


def _is_left_over(temporary: str) -> bool:
    try:
        handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it is gone, or a link
        return False
    try:
        found, free = os.fstat(handle), _flock(handle)
    finally:
        os.close(handle)
    age = abs(time.time() - found.st_mtime)  # a clock that was set back gives times to come
    is_own = temporary.rpartition(".")[0][-16:-8] == _host()
    # A file just made may not be locked yet.
    return stat.S_ISREG(found.st_mode) and free is not False and age > (2.0 if is_own and free else _DAY)


def _flock(handle: int) -> bool | None:
    """Lock an open file. Return False if another process has locked it, None if its file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def replace_folder(new: Path, folder: Path, old: Path) -> None:
    """Rename `new` to `folder`, and the existing folder to `old`, which the caller removes.

    A crash between the two renames leaves `new` and `old` beside each other. A reader that finds them may then rename `new` itself.

    Raises:
        OSError: the file system refuses; the existing folder is then in place again.
    """
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and folder.exists() and not new.exists():
            pass  # a reader has renamed it first
        else:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise
    sync(folder.parent)


def rename_whole(path: Path, name: Path) -> None:
    """Rename a file or folder that is complete and synced, and sync the folder that holds it."""
    os.replace(path, name)
    sync(name.parent)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk. A rename is on disk once its folder is synced.

    Raises:
        OSError: the disk is full or fails; the error names the path. A file system that cannot sync folders is none.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _NO_FOLDER_SYNC and stat.S_ISDIR(os.fstat(handle).st_mode):
            return
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


# ---- Reading ---------------------------------------------------------------------------------------------------------


def file_sha256(path: str | Path, *, fresh: bool = False) -> str:
    """Return the SHA-256 of a file in hexadecimal, cached by path, size, inode and times of change.

    Args:
        path: path of the file.
        fresh: read the file even if its hash is cached.
    """
    path = Path(path).resolve()
    stat_result = path.stat()
    key = (str(path), stat_result.st_size, stat_result.st_ino, stat_result.st_mtime_ns, stat_result.st_ctime_ns)
    if not fresh and key in _hashes:
        return _hashes[key]
    started = time.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Clocks of file systems have a resolution of up to 2 s: a file changed just now may change again without a new time. After a clock was
    # set back, times lie ahead: such a file is read each time.
    if started - max(stat_result.st_mtime_ns, stat_result.st_ctime_ns) > 2_000_000_000:
        _hashes[key] = digest
    return digest


def read_start(path: Path, size: int) -> bytes:
    """Return the first bytes of a plain file; b"" for anything else."""
    if not stat.S_ISREG(path.stat().st_mode):
        return b""
    with path.open("rb") as file:
        return file.read(size)


def plain_files(folder: str | Path, refusal: type[ValueError]) -> dict[str, int]:
    """List the files of a folder and of its subfolders.

    The folder may come from a stranger. A symbolic link may lead to an unchecked file, and a pipe or device returns other bytes on each
    read.

    Args:
        folder: folder to list. It may itself be a link, since a person has typed it. A folder that does not exist has no files.
        refusal: class of the error.

    Returns:
        Relative path, with slashes -> bytes.

    Raises:
        ValueError: of the class `refusal`, at a symbolic link, pipe, socket or device. None of them is followed or opened.
    """
    folder = Path(folder)
    files: dict[str, int] = {}
    for parent, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            path = Path(parent, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # another process has removed it
            if stat.S_ISREG(status.st_mode):
                files[path.relative_to(folder).as_posix()] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise refusal(
                    f"{path} is {kind_of_entry(path)}, wanted a plain file or folder: checkpoints and artifacts are not followed to "
                    "other places; if it is yours, put a copy of the file or folder itself in its place, else use another one"
                )
    return files


def kind_of_entry(path: Path) -> str:
    """Describe in words the entry at a path, without following links."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {os.readlink(path)}"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"
