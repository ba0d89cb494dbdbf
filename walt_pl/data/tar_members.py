"""Tar members of shards that a stranger may have written: headers of limited size, and the words of a sample."""

from __future__ import annotations

import re
import tarfile
from typing import Any

from walt_pl.plain_text import clean_caption, decode_text, is_one_line
from walt_pl.untrusted import UntrustedError, parse_json

MAX_TEXT_BYTES = 1 << 20
"""Bytes of a caption, a class or the JSON of a sample, and of a tar header's extension (long names, PAX)."""
MAX_MEMBER_BYTES = 1 << 40
"""Bytes of a member."""
MAX_NAME = 1000
"""Characters of the name of a class or a split."""
MAX_NAMES = 1_000_000
"""Shards that one pattern may stand for; at 1 GB a shard they are a petabyte."""
LABELS = range(-(2**31), 2**31)
"""Numbers that the index's column `label` holds."""
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class BoundedTarInfo(tarfile.TarInfo):
    """A tar header that is refused if it claims impossible sizes. tarfile would read an extension of any size into memory.

    tarfile also takes a damaged header behind the first one for the end of the archive. Here it is an error.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> BoundedTarInfo:
        """Read the next header.

        Raises:
            tarfile.ReadError: it is damaged, or claims an impossible size.
        """
        return _read_header(super().fromtarfile, tarfile)

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Process the header by its type, see the comments in CPython's tarfile."""
        _check_size(self)
        if self.type in _EXTENSIONS and self.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, at most {MAX_TEXT_BYTES:,} wanted")
        return super()._proc_member(tar)  # type: ignore[misc]  # not in typeshed

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, headers: dict[str, str], tar: tarfile.TarFile) -> None:
        """Mark a sparse member, which is not read. tarfile would read its map, without end where the file is cut off."""
        following.sparse = b""  # not None: `issparse` is true


def _read_header(read: Any, tar: tarfile.TarFile) -> BoundedTarInfo:
    try:
        member: BoundedTarInfo = read(tar)
    except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]  # not in typeshed
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}: {error}") from None
    _check_size(member)
    return member


def _check_size(member: tarfile.TarInfo) -> None:
    if not 0 <= member.size <= MAX_MEMBER_BYTES:
        raise tarfile.ReadError(f"a member that claims {member.size:,} bytes")


def label_of(text: str) -> int | str:
    """Return the class that a text names: a number, a name, or -1 where it is empty.

    Raises:
        UntrustedError: the number does not fit the index, or the name is too long or has several lines.
    """
    if re.fullmatch(r"-?\d+", text):
        if len(text) > 11 or int(text) not in LABELS:
            raise UntrustedError(f"label {text[:20]} is not a number of 32 bits")
        return int(text)
    if len(text) > MAX_NAME or not is_one_line(text):
        raise UntrustedError(f"label {text[:20]!a}... has more than {MAX_NAME} characters or more than one line")
    return text or -1


def read_words(text: bytes, ending: str) -> dict[str, Any]:
    """Return what a member says about its sample: "caption", "label" and "split", as far as it says them.

    Args:
        text: content of the member.
        ending: "txt", "cls" or "json".

    Raises:
        UntrustedError: the text is too large, or no caption, class or JSON.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise UntrustedError(f"{len(text):,} bytes, at most {MAX_TEXT_BYTES:,} wanted")
    if ending == "json":
        return _read_json(text)
    words = decode_text(text)
    return {"caption": clean_caption(words)} if ending == "txt" else {"label": label_of(words.strip())}


def _read_json(text: bytes) -> dict[str, Any]:
    row = parse_json(text, "its .json")
    row = row if isinstance(row, dict) else {}
    found: dict[str, Any] = {}
    if caption := clean_caption(str(row.get("caption") or row.get("text") or "")):
        found["caption"] = caption
    if row.get("label") is not None:
        found["label"] = label_of(str(row["label"]))
    if split := str(row.get("split") or ""):
        found["split"] = split
    return found
