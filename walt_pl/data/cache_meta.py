"""The file `meta.json` of a cache of latents, which may come from a stranger or from a damaged disk."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_pl.untrusted import MAX_JSON_BYTES, UntrustedError, read_json

MAX_ROW_BYTES = 1 << 30
"""Bytes of one latent."""
MAX_ENTRY_BYTES = 256
"""Bytes of `meta.json` for each row of the cache, beyond those of any JSON file. A row that cannot be read has its reason there."""
_SUM = "sha256"


def dump_meta(meta: Mapping[str, Any]) -> bytes:
    """Return the bytes of `meta.json`, with the hash of its content."""
    plain = plain_values(meta)
    return json.dumps({**plain, _SUM: _hash(plain)}, indent=1).encode()


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as `read_meta` gives them back: tuples become lists, and numbers as keys become text."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def read_meta(path: Path, rows: int) -> dict[str, Any]:
    """Return the key, the shape of a row and the entry of each shard. A file of an older version has no hash.

    Args:
        path: the file.
        rows: number of rows of the cache.

    Raises:
        UntrustedError: it is damaged.
    """
    try:
        meta = read_json(path, MAX_JSON_BYTES + MAX_ENTRY_BYTES * rows)
    except UntrustedError as error:
        raise UntrustedError(f"{path} is damaged ({error})") from None
    if not isinstance(meta, dict) or {*meta} - {_SUM} != {"key", "shape", "shards"} or not isinstance(meta["key"], dict):
        raise UntrustedError(f"{path} is damaged: wanted key, shape and shards")
    written = meta.pop(_SUM, None)
    if written is not None and written != _hash(meta):
        raise UntrustedError(f"{path} is damaged: it has changed since it was written (SHA-256)")
    shape, shards = meta["shape"], meta["shards"]
    sizes = isinstance(shape, list) and all(type(size) is int and 0 < size <= MAX_ROW_BYTES for size in shape)
    if not sizes or 2 * math.prod(shape) > MAX_ROW_BYTES:
        raise UntrustedError(f"{path} is damaged: shape {str(shape)[:100]} is not that of a latent")
    if not isinstance(shards, list) or not all(map(_is_entry, shards)):
        raise UntrustedError(f"{path} is damaged: its shards are no hashes and reasons")
    return meta


def version_of(path: Path) -> tuple[int, ...]:
    """Return numbers that differ after the file was written again; none if it is missing. Each writing gives it a new inode and time."""
    if not path.is_file():
        return ()
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_rows(shards: Sequence[Mapping[str, Any] | None], rows: Sequence[range], path: Path) -> None:
    """Check that `meta.json` has an entry for each shard, and that each names rows of its own.

    Args:
        shards: entries of the shards.
        rows: the rows of each shard.
        path: the file, for the error message.

    Raises:
        UntrustedError: it has not.
    """
    if len(shards) != len(rows):
        raise UntrustedError(f"{path} is damaged: {len(shards)} shards, wanted {len(rows)}")
    for shard, own in zip(shards, rows, strict=True):
        if strange := [row for row in (shard or {}).get("broken", ()) if int(row) not in own]:
            raise UntrustedError(f"{path} is damaged: row {strange[0]} is in another shard")


def _is_entry(shard: Any) -> bool:
    if shard is None:
        return True
    if not isinstance(shard, dict) or set(shard) != {"sha256", "broken"} or not isinstance(shard["sha256"], str):
        return False
    broken = shard["broken"]
    return isinstance(broken, dict) and all(row.isdecimal() and len(row) < 16 and isinstance(why, str) for row, why in broken.items())


def _hash(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
