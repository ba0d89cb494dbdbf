"""The quarantine: a list of files that no one trains on, in a CSV beside the index that people may read and write.

`NAME.quarantine.csv` has the columns path and offset (as in the index, see docs/DATA.md) and reason. The doctor's reasons begin with one
of `FINDINGS`: the doctor takes such a row away again when the file is found well. Rows with any other reason are their author's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from walt_pl.data.index import Entries

FINDINGS = ("missing", "corrupt", "truncated", "hang", "crash", "duplicate")
"""First words of the reasons that are the doctor's."""
COLUMNS = ["path", "offset", "reason"]


class Quarantine:
    """Files that are not used, and why.

    Args:
        path: The CSV. A file that is not there is an empty list.

    Raises:
        ValueError: a row is not one of a quarantine list; says which.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: dict[tuple[str, int], str] = {}
        """Reason by (path as written in the index, offset; -1 for a whole file)."""
        if path.is_file():
            self._read()

    @classmethod
    def beside(cls, index: str | Path) -> Quarantine:
        """The quarantine list of an index."""
        return cls(Path(index).with_suffix(".quarantine.csv"))

    def _read(self) -> None:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            try:
                if rows.fieldnames is None or set(COLUMNS) - set(rows.fieldnames):
                    raise ValueError(f"wanted the columns {', '.join(COLUMNS)}, found {', '.join(rows.fieldnames or [])}")
                for row in rows:
                    if not row["path"]:
                        raise ValueError("no path")
                    self.add(row["path"], int(row["offset"] or -1), row["reason"] or "")
            except (ValueError, csv.Error) as error:
                raise ValueError(f"{self.path}:{rows.line_num}: {error}; mend the row, or remove the file and run the doctor") from error

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, path: str, offset: int, reason: str) -> None:
        """Note a file; `path` as it is written in the index, `offset` -1 for a whole file. A later reason replaces an earlier one."""
        self.reasons[path, offset] = reason

    def admit(self, path: str, offset: int, finding: str, reason: str) -> None:
        """The doctor's `add`: does nothing where a person has put the file on the list."""
        before = self.reasons.get((path, offset))
        if before is None or finding_of(before):
            self.add(path, offset, f"{finding}: {reason}")

    def release(self, path: str, offset: int) -> None:
        """Take a file off the list if it was the doctor who put it there."""
        if finding_of(self.reasons.get((path, offset), "")):
            del self.reasons[path, offset]

    def positions(self, entries: Entries) -> NDArray[np.int64]:
        """Where in `entries` the files of the list are, ascending."""
        if not self.reasons:
            return np.empty(0, np.int64)
        paths = entries.column("path")
        listed_paths = pa.array(sorted({path for path, _ in self.reasons}), pa.large_string())
        found = pc.indices_nonzero(pc.is_in(paths, listed_paths)).to_numpy().astype(np.int64)
        offsets = entries.column("offset")[found]
        named = paths.take(pa.array(found)).to_pylist()
        listed = [key in self.reasons for key in zip(named, offsets.tolist(), strict=True)]
        return found[np.array(listed, bool)]

    @property
    def sha256(self) -> str:
        """Hash of what is on the list, whatever the order."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def write(self) -> None:
        """Write the list, whole or not at all; an empty list leaves no file."""
        if not self.reasons:
            self.path.unlink(missing_ok=True)
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(self._text())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _text(self) -> str:
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows((path, offset, reason) for (path, offset), reason in sorted(self.reasons.items()))
        return text.getvalue()


def finding_of(reason: str) -> str:
    """The doctor's word that a reason begins with, "" where it is not the doctor's."""
    word = reason.split(":", 1)[0]
    return word if word in FINDINGS else ""
