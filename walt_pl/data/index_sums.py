"""Hashes beside an index: `NAME.sha256`, as `sha256sum` writes and checks them.

It has a line for `NAME.parquet` and one for `NAME.arrow`. Every start compares them, so that a flipped bit gives no other rows. An index
that is handed around without its hashes is read as it is, and the next start writes them. While an index is replaced, there is a line
for the old Parquet file and one for the new one: a crash between the two leaves either of them valid.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from walt_pl.files import file_sha256, write_whole
from walt_pl.plain_text import split_lines
from walt_pl.untrusted import UntrustedError, read_bytes

_MAX_BYTES = 65_536
_ARROW = ".arrow"


@dataclass(frozen=True)
class Sums:
    """Hashes that an index was written with."""

    parquet: tuple[str, ...] = ()
    """SHA-256 of the Parquet file, one of them; empty where none is known."""
    arrow: str = ""
    """SHA-256 of the Arrow file, "" where none is known."""


def sums_file(path: Path) -> Path:
    """Return the path of the hashes of an index."""
    return path.with_suffix(".sha256")


def read_sums(path: Path) -> Sums:
    """Return the hashes beside an index; without the file, none.

    Args:
        path: the Parquet file (or an Arrow file in the user's cache).

    Raises:
        ValueError: the file of the hashes is damaged.
    """
    parquet: list[str] = []
    arrow = ""
    try:
        for line in _read_lines(path) or ():
            found = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
            if found is None:
                raise UntrustedError(f'found the line "{line[:80]}", wanted a hash and a name as sha256sum writes them')
            # By the ending: somebody may have given all files of an index another name.
            if found[2].endswith(_ARROW):
                arrow = found[1]
            else:
                parquet.append(found[1])
    except (ValueError, OSError) as error:
        raise ValueError(f"{sums_file(path)} is damaged ({error}); remove it, and the next start writes it again") from None
    return Sums(tuple(parquet), arrow)


def _read_lines(path: Path) -> list[str] | None:
    """Return the lines of the hashes beside an index, or None for a file of a person: some line names no part of an index.

    Raises:
        ValueError: it is no plain file or no text.
        OSError: it cannot be read.
    """
    file = Path(os.path.realpath(sums_file(path)))
    if not os.path.lexists(sums_file(path)):
        return []
    if file.stat().st_size > _MAX_BYTES:
        return None
    lines = split_lines(read_bytes(file, _MAX_BYTES).decode())
    own = (path.suffix or path.name, ".parquet", _ARROW)
    return lines if all(line.endswith(own) for line in lines) else None


def check_own_sums(path: Path) -> None:
    """Refuse to replace a file of a person that has the name of the hashes of an index.

    Raises:
        FileExistsError: there is such a file.
    """
    with contextlib.suppress(ValueError, OSError):
        if _read_lines(path) is not None:
            return
    told = "a file of other hashes, move it away or name the index otherwise (--out)"
    raise FileExistsError(errno.EEXIST, told, str(sums_file(path)))


def write_sums(path: Path, sums: Sums) -> None:
    """Write the hashes of an index.

    Raises:
        FileExistsError: a person has a file of this name.
    """
    check_own_sums(path)
    lines = [f"{sha256}  {path.name}\n" for sha256 in dict.fromkeys(sums.parquet)]
    lines += [f"{sums.arrow}  {path.with_suffix(_ARROW).name}\n"] if sums.arrow else []
    write_whole(sums_file(path), "".join(lines).encode())


def begin_replacing(path: Path, new: Path) -> str:
    """Note the hash of the file that is about to replace an index, beside that of the present file.

    Returns:
        The hash of the new file.
    """
    sha256 = file_sha256(new, fresh=True)
    present: Iterable[str] = [file_sha256(path, fresh=True)] if path.is_file() else []
    arrow = ""
    with contextlib.suppress(ValueError):  # they are damaged
        arrow = read_sums(path).arrow  # it stays listed, and so the file is known as ours
    write_sums(path, Sums((sha256, *present), arrow))
    return sha256


def checked_sha256(path: Path) -> str:
    """Return the SHA-256 of an index that exists.

    Raises:
        ValueError: it is not the file that was written. The message has the command that makes it again.
    """
    sha256, wanted = file_sha256(path, fresh=True), read_sums(path).parquet
    with contextlib.suppress(ValueError, OSError):
        if _read_lines(path) is None:
            told = f"{sums_file(path)} has other hashes than those of an index: {path} is read without them, and none are written"
            warnings.warn(f"{told}; move it away, and the next start writes them", stacklevel=2)
    if wanted and sha256 not in wanted:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {sha256[:12]}..., {sums_file(path)} says {wanted[0][:12]}...\n"
            f"  Make it again: remove it, and type python -m walt_pl index SOURCE --out {path}\n"
            f"  If you have changed or replaced it yourself, remove {sums_file(path)}"
        )
    return sha256
