"""Hashes of the data that a training is defined by, to tell whether they change between two starts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from walt_pl.data.batch import Kind
from walt_pl.data.index import class_names
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.selection import Selection

CLASSES = "data.classes_sha256"
"""Key of the hash of the classes' names."""


class IndexedData(Protocol):
    """Attributes of the data module that the hashes need."""

    index: str
    shards: Mapping[Kind, str] | None

    @property
    def index_sha256(self) -> str:
        """Return the hash of the index file."""
        ...

    @property
    def quarantine(self) -> Quarantine:
        """Return the list of files that must not be read."""
        ...

    def selection(self, split: str) -> Mapping[Kind, Selection]:
        """Return the used clips and images of a split."""
        ...


def fingerprints(data: IndexedData) -> dict[str, str]:
    """Return the hashes by key; walt_pl/cli/task_rules.py has their meaning.

    Raises:
        ValueError: the index is missing, or nothing of it can be used.
    """
    found = {
        "data.index_sha256": data.index_sha256,
        "data.quarantine_sha256": hash_plain(sorted(data.quarantine.reasons)),  # another reason for a file changes nothing
        CLASSES: hash_plain(class_names(Path(data.index))),
    }
    if data.shards is None:
        used = hashlib.sha256()
        for kind, selection in data.selection("train").items():
            used.update(kind.encode())
            used.update(selection.positions().tobytes())
            used.update(selection.bucket.tobytes())
        found["data.selection_sha256"] = used.hexdigest()
    return found


def hash_plain(plain: Sequence[Any]) -> str:
    """Return the SHA-256 of plain values in hexadecimal."""
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
