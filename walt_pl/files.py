"""The files of a checkpoint or an artifact, which may come from a stranger: plain files and folders, and nothing else.

A symbolic link names a file that nobody has checked, and a pipe or device gives other bytes each time it is read.
"""

import os
import stat
from pathlib import Path


def plain_files(folder: str | Path, refusal: type[ValueError]) -> dict[str, int]:
    """List the files of a folder and of the folders in it.

    Args:
        folder: it may itself be a link, since a person has typed it. A folder that does not exist has no files.
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
    """Say in words what lies at a path, without following it."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {os.readlink(path)}"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"
