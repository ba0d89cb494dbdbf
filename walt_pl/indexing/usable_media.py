"""Usable rows of an index: files that were decoded and are not in the quarantine list."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from walt_pl.data.index_table import read_table
from walt_pl.data.quarantine import Quarantine, finding_of
from walt_pl.indexing.summary import find_unused


def read_usable(index: Path) -> pa.Table:
    """Return the rows of an index whose files can be read, of all splits and kinds.

    Raises:
        ValueError: The index or its quarantine list cannot be read, or no file can be used. The message counts the reasons.
    """
    table, quarantine = read_table(index), Quarantine.beside(index)
    decoded = pc.and_(pc.greater(table["frames"], 0), pc.and_(pc.greater(table["height"], 0), pc.greater(table["width"], 0)))
    usable = table.filter(pc.and_(decoded, pc.invert(find_unused(table, quarantine))))
    if not usable.num_rows:
        counts = Counter(finding_of(reason) or "listed by a person" for reason in quarantine.reasons.values())
        place, reason = next(iter(quarantine.reasons.items()), ("", ""))
        shown = ", ".join(f"{count:,} {finding}" for finding, count in counts.most_common())
        raise ValueError(f"none of its {table.num_rows:,} files can be used ({shown}), the first: {place}: {reason[:400]}")
    return usable


def rows_of(table: pa.Table, split: str, kind: str) -> pa.Table:
    """Return the rows of a split and kind."""
    return table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["kind"], kind)))
