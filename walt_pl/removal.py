"""Remove what this program wrote, and nothing else: plain files of known names, never through a link."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

TEMPORARY = re.compile(r"\.(.+)\.\d+(\.[0-9a-f]{16})?\.tmp")
"""Name of a temporary file of `walt_pl.files.whole_file`, with the name of the file itself."""


def remove_own(folder: Path, own: Sequence[str]) -> list[Path]:
    """Remove the own files below a folder, and then its empty folders, itself included.

    Links, pipes and files of other names stay, and so do the folders that hold them. A folder that is a link stays as it is.

    Args:
        folder: the folder; it may be missing.
        own: regular expressions of the paths of own files, relative to the folder, with slashes. Their temporary files are own, too.

    Returns:
        The entries that stay, sorted; none if the folder is gone.
    """
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        return [folder]
    pattern, left = re.compile("|".join(f"(?:{one})" for one in own)), []
    # Bottom-up by open folders: an entry that somebody replaces by a link meanwhile is not followed.
    for place, folders, names, handle in os.fwalk(folder, topdown=False, follow_symlinks=False):
        for name in (*names, *folders):
            path = Path(place, name)
            try:
                mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    os.rmdir(name, dir_fd=handle)
                elif stat.S_ISREG(mode) and pattern.fullmatch(_own_name(path.relative_to(folder))):
                    os.unlink(name, dir_fd=handle)
                else:
                    left.append(path)
            except FileNotFoundError:
                continue  # another process has removed it
            except OSError:
                if not stat.S_ISDIR(mode):  # a folder that is not empty holds an entry that is listed
                    left.append(path)
    if not left:
        folder.rmdir()
    return sorted(left)


def describe_left(left: Sequence[Path]) -> str:
    """Return the first entries that stay, and the number of the others, for a message."""
    return ", ".join(map(str, left[:3])) + (f" and {len(left) - 3} more" if len(left) > 3 else "")


def _own_name(path: Path) -> str:
    found = TEMPORARY.fullmatch(path.name)
    return (path.with_name(found[1]) if found else path).as_posix()
