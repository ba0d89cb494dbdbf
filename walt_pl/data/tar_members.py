"""Tar members of shards that a stranger may have written: headers of limited size, and the words of a sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from walt_pl.data.caption_values import read_captions
from walt_pl.data.labels import read_label
from walt_pl.plain_text import decode_text, is_one_line
from walt_pl.untrusted import UntrustedError, parse_json

MAX_TEXT_BYTES = 1 << 20
"""Bytes of a caption, a class or the JSON of a sample, and of a tar header's extension (long names, PAX)."""
MAX_MEMBER_BYTES = 1 << 40
"""Bytes of a member."""
MAX_NAME = 1000
"""Characters of the name of a class or a split."""
MAX_NAMES = 1_000_000
"""Shards that one pattern may stand for; at 1 GB a shard they are a petabyte."""
_FIELDS = {"txt": "caption", "cls": "label", "json": ".json"}
"""Names of findings about a member, by its ending."""
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


def label_of(value: Any) -> dict[str, Any]:
    """Return the class that a member names as "label"; or, where it cannot be used, its "findings" say why.

    Args:
        value: Text, or a plain value of JSON.
    """
    try:
        label = read_label(value)
    except ValueError as error:
        return {"findings": {"label": str(error)}}
    if isinstance(label, str) and (len(label) > MAX_NAME or not is_one_line(label)):
        return {"findings": {"label": f"{label[:20]!a}... has more than {MAX_NAME} characters or more than one line"}}
    return {"label": label}


def read_words(text: bytes, ending: str) -> dict[str, Any]:
    """Return what a member says about its sample: "caption", "more_captions", "label" and "split", as far as it says them.

    "findings" says by field why its words are not used.

    Args:
        text: content of the member.
        ending: "txt", "cls" or "json".

    Raises:
        UntrustedError: the text is too large, or no JSON.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise UntrustedError(f"{len(text):,} bytes, at most {MAX_TEXT_BYTES:,} wanted")
    if ending == "json":
        return _read_json(text)
    words = decode_text(text)
    return _read_caption(words) if ending == "txt" else label_of(words.strip())


def unused_words(ending: str, reason: str) -> dict[str, Any]:
    """Return that the words of a member are not used, and why, in the form of `read_words`."""
    return {"findings": {_FIELDS[ending]: reason}}


def join_words(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the members of a sample say together.

    `.txt` and `.cls` win over `.json`. A list of several captions in `.json` wins over `.txt`, which holds one.

    Args:
        said: Words of each member by its ending, as `read_words` returns them.
    """
    lists = said.get("json", {})
    joined = _merge(said[ending] for ending in ("json", "txt", "cls") if ending in said)
    return joined | {"caption": lists["caption"]} if "more_captions" in lists else joined


def _merge(words: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return words and findings together; later words win."""
    merged: dict[str, Any] = {}
    findings: dict[str, str] = {}
    for one in words:
        merged |= one
        findings |= one.get("findings", {})
    return merged | {"findings": findings}


def _read_caption(*values: object) -> dict[str, Any]:
    """Return the captions of the first value that has any."""
    try:
        captions = next(filter(None, map(read_captions, values)), ())
    except ValueError as error:
        return {"findings": {"caption": str(error)}}
    found: dict[str, Any] = {"caption": captions[0]} if captions else {}
    return found | {"more_captions": captions[1:]} if len(captions) > 1 else found


def _read_split(value: object) -> dict[str, Any]:
    if value is None or isinstance(value, str):
        return {"split": value} if value else {}
    return {"findings": {"split": f"must be text, found {str(value)[:60]}"}}


def _read_json(text: bytes) -> dict[str, Any]:
    row = parse_json(text, "its .json")
    row = row if isinstance(row, dict) else {}
    label = {} if row.get("label") is None else label_of(row["label"])
    return _merge([_read_caption(row.get("caption"), row.get("text")), label, _read_split(row.get("split"))])
