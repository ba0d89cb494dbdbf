"""The record of the data that a start of a training read: counts by split and kind, sizes, and why clips were left out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from walt_pl.files import write_whole
from walt_pl.plain_records import build_record, check_range
from walt_pl.untrusted import read_json

MAX_DATA_BYTES = 1 << 20
"""Bytes of data.json. It has about 1 KB."""
MAX_CLIPS = 2**53
"""Largest count of clips."""


@dataclass(frozen=True)
class KindRecord:
    """The videos, or the images, of a split."""

    listed: int
    used: int
    left_out: dict[str, int] = field(default_factory=dict)
    """Number by reason."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of the used ones by the size of their batches in pixels, rows x columns."""

    def __post_init__(self) -> None:
        for name, count in (("listed", self.listed), ("used", self.used), *self.left_out.items(), *self.sizes.items()):
            check_range(count, name, MAX_CLIPS)


@dataclass(frozen=True)
class DataRecord:
    """The data of a start of a training."""

    index: str
    """Path of the index, as it was typed."""
    sha256: str | None
    """Hash of the index; None where it is not known."""
    frames: int
    """Frames of a video."""
    fps: float | None
    """Frames read per second of every video; None for the file's own."""
    splits: dict[str, dict[str, KindRecord]]
    """Split -> video or image -> counts."""
    quarantine: dict[str, int] = field(default_factory=dict)
    """Entries of the quarantine list by the doctor's finding; "listed by a person" for others."""
    streamed: tuple[str, ...] = ()
    """Kinds that are read from tar shards, without counts."""

    @classmethod
    def read(cls, path: Path) -> DataRecord:
        """Read a record, which a stranger may have written.

        Raises:
            FileNotFoundError: there is no such file.
            UntrustedError: it is no plain file of limited size, or an entry has another type or range.
        """
        return build_record(cls, read_json(path, MAX_DATA_BYTES), str(path))

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())
