"""Keep clips in the split that they have: a clip that was trained on says nothing when it is held out, and the reverse leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from walt_pl.data.index import MediaKey, media_keys
from walt_pl.indexing.listing import normalize_split


@dataclass(frozen=True, slots=True)
class SplitRow:
    """A listed row, and the split that it would get."""

    place: MediaKey
    split: str
    family: str
    """As in `SourceItem`."""
    named: bool
    """True if the source names the split, and no option changed it."""


def check_splits(old: pa.Table, rows: list[SplitRow], out: Path) -> None:
    """Refuse rows that would change the split of clips that an index has, or part a film or group.

    Args:
        old: Rows of the index before.
        rows: Rows that the source lists.
        out: The index.

    Raises:
        ValueError: There are such rows. The message has their counts, and what to type.
    """
    splits = defaultdict[MediaKey, set[str]](set)
    for place, split in zip(media_keys(old), old["split"].to_pylist(), strict=True):
        splits[place].add(split)
    if not splits:
        return
    moved = list(_moves(splits, rows))
    parted = list(_partings(splits, rows))
    if not moved and not parted:
        return
    lines = [f"{out}: clips and images would change their split:"]
    for found, words in ((moved, "would move from {} to {}"), (parted, "new, with film or group in {}, would be in {}")):
        for pair, count in sorted(Counter(pair for pair, _ in found).items()):
            first = next(place for other, place in found if other == pair)
            lines.append(f"{count:,} {words.format(*pair)}, the first: {first}")
    lines.append("a model knows what it was trained on, so a moved clip measures nothing: type --val, --split and --fold as before,")
    raise ValueError("\n  ".join([*lines, "or another --out for a new index; --allow-moves moves them all the same"]))


def rename_splits(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Return the rows of an index with "val" in place of "Validation" and the like, see `normalize_split`, and a note of each name."""
    names = table["split"].to_pylist()
    counts = Counter(name for name in names if normalize_split(name) != name)
    notes = [f'rows of split "{name}" that are {normalize_split(name)} now: {count:,}' for name, count in sorted(counts.items())]
    if not counts:
        return table, []
    place = table.schema.get_field_index("split")
    return table.set_column(place, table.schema.field(place), pa.array(map(normalize_split, names), table.schema.field(place).type)), notes


def note_own_val(rows: list[SplitRow], val: float) -> list[str]:
    """Return a note if the source names its own held-out part, and `--val` adds to it."""
    own = sum(row.named and row.split == "val" for row in rows)
    added = sum(not row.named and row.split == "val" for row in rows)
    return [f"the source names its own val ({own:,}); --val {val:g} holds out {added:,} of its train besides"] if val and own else []


def _moves(splits: dict[MediaKey, set[str]], rows: list[SplitRow]) -> Iterator[tuple[tuple[str, str], MediaKey]]:
    """Yield the old and the new split, and the place, of each row that comes to a split in which it was not."""
    after = defaultdict[MediaKey, set[str]](set)
    for row in rows:
        after[row.place].add(row.split)
    for place, there in after.items():
        before = splits.get(place, set())
        for split in sorted(there - before) if before else []:
            yield (min(before - there or before), split), place


def _partings(splits: dict[MediaKey, set[str]], rows: list[SplitRow]) -> Iterator[tuple[tuple[str, str], MediaKey]]:
    """Yield the split of a family and the new split, and the place, of each new row that leaves its family.

    A family is a group of the data set (`SourceItem.family`) or the pieces of a file. A table may divide the pieces of a file by hand.
    """
    new = [row for row in rows if row.place not in splits]
    files = _splits_of((place.whole, there) for place, there in splits.items())
    # The members of UCF-101's groups and of Kinetics' films are named FAMILY_...
    names = {row.family for row in new if row.family}
    stems = ((stem, there) for place, there in splits.items() if place.offset < 0 for stem in _beginnings(place.path, names))
    known = {row.place: row.family for row in rows if row.family in names}
    families = _splits_of([*stems, *((family, splits[place]) for place, family in known.items() if place in splits)])
    for row in new:
        there = families.get(row.family, set()) if row.family else set()
        if not row.named:
            there = there | files.get(row.place.whole, set())
        if there and row.split not in there:
            yield (min(there), row.split), row.place


def _splits_of(pairs: Iterable[tuple[object, set[str]]]) -> dict[object, set[str]]:
    found = defaultdict[object, set[str]](set)
    for key, there in pairs:
        found[key] |= there
    return found


def _beginnings(path: str, names: set[str]) -> Iterator[str]:
    """Yield the beginnings of a file's name, up to each "_", that are names of families."""
    if names:
        parts = path.rpartition("/")[2].split("_")
        yield from names.intersection(accumulate(parts[:-1], "{}_{}".format))
