"""Names of tar shards to stream: expand a pattern, and open a name whose scheme is allowed.

webdataset would open `pipe:` with a shell and most other schemes with a program such as curl. Names come from configurations, so a scheme
is opened only if the person who starts the training has allowed it (`data.allow_schemes`). Plain files need no permission.
"""

import os
import re
import stat
from collections.abc import Collection
from itertools import islice
from typing import IO
from urllib.parse import urlparse
from urllib.request import url2pathname

from braceexpand import braceexpand
from webdataset.gopen import gopen_schemes, rewrite_url
from webdataset.shardlists import envsubst

from walt_pl.data.tar_members import MAX_NAMES

_MAX_PATTERN = 65_536
"""Characters of a pattern."""
_MAX_NESTED = 20
"""Depth of nested braces."""
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d{1,18})?")


def expand_urls(pattern: str, allowed: Collection[str]) -> list[str]:
    """Return the names that a pattern stands for, in webdataset's notation: braces, "::" between patterns, ${NAME} for WDS_NAME.

    Args:
        pattern: names of shards.
        allowed: schemes that may be opened beside plain files.

    Raises:
        ValueError: the pattern stands for more than `MAX_NAMES` names, is no pattern, or a name has a scheme that is not allowed.
    """
    if len(pattern) > _MAX_PATTERN or pattern.count("{") > _MAX_PATTERN // 64:
        raise ValueError(f"data.shards: a pattern of {len(pattern):,} characters, at most {_MAX_PATTERN:,} (and 1,024 braces) wanted")
    found: list[str] = []
    for part in pattern.split("::"):
        try:
            text = _substitute(part)
            count = len(found) + _count(text)
            if count > MAX_NAMES:
                raise ValueError(f"it stands for more than {MAX_NAMES:,} names, the most that are read; write larger shards")
            found += islice(braceexpand(text), MAX_NAMES + 1)
        except (ValueError, AssertionError, IndexError) as error:  # AssertionError: ${NAME} without WDS_NAME in the environment
            raise ValueError(f"data.shards: {part[:200]}: {error}") from None
    for url in found:
        check_scheme(rewrite_url(url), allowed)
    return found


def check_scheme(url: str, allowed: Collection[str]) -> str:
    """Return the scheme of a name, "" for a plain file.

    Raises:
        ValueError: it is not allowed, or nothing can open it. The message names the option to type.
    """
    try:
        scheme = urlparse(url).scheme
    except ValueError as error:
        raise ValueError(f"data.shards: {url[:200]}: {error}") from None
    if scheme in ("", "file"):
        return ""
    known = sorted(set(gopen_schemes) - {"__default__"})
    if scheme not in known:
        stores = ("s3", "hdfs", "azure", "oci")
        other = f'; take "pipe:" and a program that reads {scheme}, or a mounted bucket' if scheme in stores else ""
        raise ValueError(f'data.shards: {url[:200]}: nothing opens "{scheme}:", there are plain files and {", ".join(known)}{other}')
    if scheme not in allowed:
        runs = "runs the command in it" if scheme == "pipe" else "reads from another machine"
        every = ", ".join(sorted({*allowed, scheme}))
        raise ValueError(
            f"data.shards: {url[:200]}: \"{scheme}:\" {runs} and is not allowed; if you want that, type --data.allow_schemes '[{every}]'"
        )
    return scheme


def open_shard(url: str, allowed: Collection[str]) -> IO[bytes]:
    """Open a shard for reading.

    Raises:
        ValueError: the scheme is not allowed.
        OSError: it cannot be opened, or is a pipe or device with the name of a file.
    """
    url = rewrite_url(url)  # the environment variable GOPEN_REWRITE
    scheme = check_scheme(url, allowed)
    if scheme:
        stream: IO[bytes] = gopen_schemes[scheme](url, "rb", 8192)
        return stream
    parsed = urlparse(url)
    return _open_plain(url2pathname(parsed.path) if parsed.scheme else url)


def _open_plain(path: str) -> IO[bytes]:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would wait for ever
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is not a plain file")
    return os.fdopen(handle, "rb")


def _substitute(text: str) -> str:
    for _ in range(10):
        before, text = text, envsubst(text)
        if len(text) > _MAX_PATTERN:
            raise ValueError(f"more than {_MAX_PATTERN:,} characters after environment variables are put in")
        if text == before:
            break
    return text


def _count(pattern: str, depth: int = 0) -> int:
    """Return the number of names of a pattern as `braceexpand` would make them, without making them."""
    if depth > _MAX_NESTED:
        raise ValueError(f"braces nested deeper than {_MAX_NESTED}")
    count, position = 1, 0
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 2
        elif pattern[position] == "{":
            end = _closing(pattern, position)
            count *= _count_braces(pattern[position + 1 : end], depth)
            position = end + 1
        else:
            position += 1
    return count


def _count_braces(inner: str, depth: int) -> int:
    """Return the number of texts that the inside of a pair of braces stands for."""
    if numbers := _RANGE.fullmatch(inner):
        first, last, step = (int(number or 1) for number in numbers.groups())
        return abs(last - first) // max(1, step) + 1
    if re.match(r"-?\d+\.\.-?\d+", inner):
        raise ValueError(f"numbers of more than 18 digits in {{{inner[:60]}...}}")
    if _LETTERS.fullmatch(inner):
        return 52
    return sum(_count(part, depth + 1) for part in _alternatives(inner))


def _alternatives(inner: str) -> list[str]:
    """Split the inside of a pair of braces at its own commas."""
    parts, position, start, open_braces = [], 0, 0, 0
    while position < len(inner):
        letter = inner[position]
        open_braces += (letter == "{") - (letter == "}")
        if letter == "," and not open_braces:
            parts.append(inner[start:position])
            start = position + 1
        position += 2 if letter == "\\" else 1
    return [*parts, inner[start:]]


def _closing(pattern: str, position: int) -> int:
    """Return the position of the brace that closes the one at `position`."""
    open_braces = 0
    while position < len(pattern):
        open_braces += (pattern[position] == "{") - (pattern[position] == "}")
        if not open_braces:
            return position
        position += 2 if pattern[position] == "\\" else 1
    raise ValueError(f"a brace is not closed: {pattern[:200]}")
