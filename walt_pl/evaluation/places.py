"""Fields of facts that say where a thing lies. Its hash says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLACES = ("file", "path", "run")
"""Last words of such fields."""
HASHES = ("sha256", "index_sha256", "artifacts")
"""Fields that identify data. That of a folder is none: it has names, sizes and times of files, which other files may share."""


def leave_out_places(facts: Any) -> Any:
    """Return facts without the places of things that a hash beside them identifies."""
    if isinstance(facts, Mapping):
        known = any(facts.get(name) for name in HASHES)
        return {name: leave_out_places(value) for name, value in facts.items() if not (known and name in PLACES)}
    return facts
