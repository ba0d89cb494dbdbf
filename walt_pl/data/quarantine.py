"""The quarantine: a list of files that are not used for training, in a CSV beside the index that people may read and write.

`NAME.quarantine.csv` has the columns path, offset, begin and end (as in the index, see docs/DATA.md) and reason. A row without begin
and end stands for the file and for every piece of it. The reasons of the doctor begin with one of `FINDINGS`. The doctor removes such
a row when it finds the file well. Rows with any other reason belong to their author, and the doctor does not change them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from walt_pl.data.index import IndexEntries, MediaKey
from walt_pl.files import write_whole
from walt_pl.untrusted import read_bytes

FINDINGS = ("missing", "corrupt", "truncated", "hang", "crash", "too large", "animated", "unknown range", "transparent", "duplicate")
"""First words of the reasons that the doctor writes."""
MAX_BYTES = 1 << 30
"""Bytes of the list: about ten million rows."""
COLUMNS = [*MediaKey._fields, "reason"]


class Quarantine:
    """Files that are not used, with the reasons.

    Args:
        path: The CSV. If the file does not exist, the list is empty.

    Raises:
        ValueError: A row is not one of a quarantine list. The message names the row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: dict[MediaKey, str] = {}
        """Reason by media key, with paths as written in the index."""
        if os.path.lexists(path):  # also a broken link or a pipe: a list that cannot be read must not count as empty
            self._read()

    @classmethod
    def beside(cls, index: str | Path) -> Quarantine:
        """Return the quarantine list of an index."""
        return cls(Path(index).with_suffix(".quarantine.csv"))

    def _read(self) -> None:
        try:
            text = read_bytes(Path(os.path.realpath(self.path)), MAX_BYTES).decode("utf-8-sig")
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}: {error}; mend it, or remove the file and run the doctor") from None
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            if rows.fieldnames is None or {"path", "offset", "reason"} - set(rows.fieldnames):
                raise ValueError(f"wanted the columns {', '.join(COLUMNS)}, found {', '.join(rows.fieldnames or [])[:200]}")
            for row in rows:
                self.add(_place(row), row["reason"] or "")
        except (ValueError, csv.Error) as error:
            said = str(error)[:400]
            raise ValueError(f"{self.path}:{rows.line_num}: {said}; mend the row, or remove the file and run the doctor") from error

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, place: MediaKey, reason: str) -> None:
        """Add a file or piece, with its path as written in the index. A later reason replaces an earlier one."""
        self.reasons[place] = reason

    def admit(self, place: MediaKey, finding: str, reason: str) -> None:
        """Add a finding of the doctor. Do nothing where a person has put this place on the list."""
        before = self.reasons.get(place)
        if before is None or finding_of(before):
            self.add(place, f"{finding}: {reason}")

    def release(self, place: MediaKey) -> None:
        """Remove a place from the list if the doctor put it there."""
        if finding_of(self.reasons.get(place, "")):
            del self.reasons[place]

    def reason(self, place: MediaKey) -> str | None:
        """Return why a place is not used, or None if it is used.

        The reason of a whole file also holds for its pieces.
        """
        return self.reasons.get(place, self.reasons.get(place.whole))

    def positions(self, entries: IndexEntries) -> NDArray[np.int64]:
        """Return the positions in `entries` of the places on the list, ascending."""
        if not self.reasons:
            return np.empty(0, np.int64)
        listed_paths = pa.array(sorted({place.path for place in self.reasons}), pa.large_string())
        found = pc.indices_nonzero(pc.is_in(entries.column("path"), listed_paths)).to_numpy().astype(np.int64)
        listed = [self.reason(place) is not None for place in entries.places(found)]
        return found[np.array(listed, bool)]

    @property
    def sha256(self) -> str:
        """Return the hash of the list's content, which does not depend on the order."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def write(self) -> None:
        """Write the list, whole or not at all. An empty list leaves no file."""
        if not self.reasons:
            self.path.unlink(missing_ok=True)
            return
        write_whole(self.path, self._text().encode())

    def _text(self) -> str:
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows((*place, reason) for place, reason in sorted(self.reasons.items()))
        return text.getvalue()


def _place(row: Mapping[str, str | None]) -> MediaKey:
    """Return the media key of a row.

    Raises:
        ValueError: It has no path, or a number that no index holds.
    """
    if not row["path"]:
        raise ValueError("no path")
    offset, begin, end = int(row["offset"] or -1), float(row.get("begin") or 0), float(row.get("end") or 0)
    if not -1 <= offset < 2**63:
        raise ValueError(f"offset {row['offset']} is not a byte of a file")
    if not (math.isfinite(begin) and math.isfinite(end) and begin >= 0 and end >= 0):
        raise ValueError(f"begin {row.get('begin')} and end {row.get('end')} must be seconds of the file, from 0")
    return MediaKey(row["path"], offset, begin, end)


def finding_of(reason: str) -> str:
    """Return the doctor's word that a reason begins with, or "" if the reason is not one of the doctor's."""
    word = reason.split(":", 1)[0]
    return word if word in FINDINGS else ""
