"""Find seconds of a file that are in several splits: a model that was trained on them says nothing when they are held out."""

from __future__ import annotations

import math
from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from walt_pl.data.index import MediaKey, media_keys


def note_overlaps(table: pa.Table) -> list[str]:
    """Return a note if clips share seconds of their file with clips of another split. A person may mean it, so it is no error.

    Args:
        table: Rows of the index.
    """
    pairs = _find_overlaps(table)
    if not pairs:
        return []
    (place, split), (other, there) = pairs[0]
    clips = {clip for pair in pairs for clip in pair}
    first = f"{place} ({split}) and {other} ({there})"
    return [f"seconds of a file in several splits: {len(clips):,} rows, the first: {first}; keep them in one split unless you mean it"]


def _find_overlaps(table: pa.Table) -> list[tuple[tuple[MediaKey, str], tuple[MediaKey, str]]]:
    """Return rows with the place and the split of each, and an earlier one of another split that shares seconds with it."""
    counts = table.group_by(["path", "offset"]).aggregate([("split", "count_distinct")])
    several = counts.filter(pc.greater(counts["split_count_distinct"], 1))["path"].combine_chunks()
    if not len(several):
        return []
    rows = table.filter(pc.is_in(table["path"], several))
    files = defaultdict[MediaKey, list[tuple[MediaKey, str]]](list)
    for place, split in zip(media_keys(rows), rows["split"].to_pylist(), strict=True):
        files[place.whole].append((place, split))
    pairs = []
    for file in sorted(files):
        longest: dict[str, MediaKey] = {}  # of each split, the piece that ends last
        for place, split in sorted(files[file]):
            pairs += [((other, there), (place, split)) for there, other in longest.items() if there != split and _end(other) > place.begin]
            longest[split] = max(longest.get(split, place), place, key=_end)
    return pairs


def _end(place: MediaKey) -> float:
    return place.end or math.inf
