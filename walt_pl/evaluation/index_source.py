"""Clips of a data index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from walt_pl.data.index import IndexEntries
from walt_pl.data.index_arrow import map_rows
from walt_pl.data.quarantine import Quarantine
from walt_pl.evaluation.clip_reading import read_entries
from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips
from walt_pl.media.types import Size

ALL = "all"
"""Name of the split that holds every clip of an index."""


class IndexSource(ClipSource):
    """Videos and images of a split of an index, in its order, without those on its quarantine list.

    Args:
        text: Path of the index, as typed.
        split: Name of the split, or "all".

    Raises:
        ValueError: The index cannot be read, or has nothing in this split.
    """

    def __init__(self, text: str, split: str) -> None:
        self.text = text
        self.split = split
        path = Path(text).absolute()
        mapped = map_rows(path)
        self.sha256 = mapped.sha256
        parts = [part for name, kinds in mapped.slices.items() if split in (ALL, name) for part in kinds.values()]
        if not parts:
            found = ", ".join(sorted(mapped.slices)) or "none, the index is empty"
            raise ValueError(f'{text}: nothing in split "{split}" (splits found: {found}); give --split with one of them, or --split {ALL}')
        # The rows are sorted by split, so a split is one stretch of them.
        rows = range(min(first for first, _ in parts), max(end for _, end in parts))
        self._entries = IndexEntries(mapped, rows, path.parent)
        self._quarantine = Quarantine.beside(path)
        self._quarantined = self._quarantine.positions(self._entries)
        self._positions = np.delete(np.arange(len(rows)), self._quarantined)

    def __len__(self) -> int:
        return len(self._positions)

    def facts(self) -> dict[str, Any]:
        """Return path, split, hash of the index, and that of the quarantine where there is one."""
        quarantine = {"quarantine_sha256": self._quarantine.sha256} if len(self._quarantine) else {}
        return {"kind": "index", "path": self.text, "split": self.split, "index_sha256": self.sha256, **quarantine}

    def kinds(self) -> Sequence[str]:
        kinds: list[str] = self._entries.column("kind").take(pa.array(self._positions)).to_pylist()
        return kinds

    def left_out(self) -> dict[str, int]:
        return {"quarantined": len(self._quarantined)} if len(self._quarantined) else {}

    def lengths(self) -> Sequence[int]:
        lengths: list[int] = self._entries.column("frames")[self._positions].tolist()
        return lengths

    def names(self) -> Sequence[str]:
        return [place.path if place == place.whole else str(place) for place in self._entries.places(self._positions)]

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: Size | None) -> ReadClips:
        entries = [self._entries[int(self._positions[draw.item])] for draw in draws]
        clips, failures = read_entries(entries, draws, frames, stride, size)
        return ReadClips(clips, [entry.caption for entry in entries], [entry.label for entry in entries], failures=failures)
