"""Build and extend an index: examine new files, in many processes, and continue where an earlier run was interrupted.

Every examined file is noted at once in a journal beside the index (`.NAME.parquet.journal`). The journal is removed when the index is
written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from walt_pl.data.index import MediaKey, media_keys, write_table
from walt_pl.data.index_arrow import check_index
from walt_pl.data.index_sums import check_own_sums
from walt_pl.data.index_table import LARGE, SCHEMA, read_table
from walt_pl.data.quarantine import Quarantine, finding_of
from walt_pl.data.tar_members import MAX_TEXT_BYTES
from walt_pl.files import remove_left_overs
from walt_pl.indexing.class_numbers import ClassNumbers, number_classes
from walt_pl.indexing.hang_limit import describe_lost, is_examined_again, total_seconds
from walt_pl.indexing.isolated_pool import LostJob, run_isolated
from walt_pl.indexing.listing import SourceItem, SourceListing, normalize_split
from walt_pl.indexing.probe_file import MediaFacts, MediaFile, probe_media_file, stat_media_file
from walt_pl.indexing.split_moves import SplitRow, check_splits, note_own_val, rename_splits
from walt_pl.indexing.split_overlaps import note_overlaps
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.media.max_pixels import MAX_PIXELS
from walt_pl.untrusted import parse_json

INDEX_ENDINGS = (".parquet", ".arrow", ".sha256", ".quarantine.csv", ".classes.txt")
"""Endings of the files of an index."""
_MEASURED = [column.name for column in fields(MediaFacts) if column.name in SCHEMA.names]


@dataclass(frozen=True)
class IndexOptions:
    """Options for building an index."""

    again: bool = False
    """Examine all files that are listed or were indexed, not only new ones."""
    split: str = ""
    """Split of the items for which the source names none; "train" where this is empty."""
    val: float = 0.0
    """Share of the training split that is held out as "val", 0..1. It depends on the names: items added later change nothing."""
    workers: int = 1
    """Processes that decode."""
    seconds: float = 60.0
    """Processor time after which a file hangs in which no further frame is found, in seconds."""
    max_pixels: int = MAX_PIXELS
    """Largest rows x columns of an image, or of a frame of a video."""
    allow_moves: bool = False
    """Rows that the index has may go to another split."""

    def __post_init__(self) -> None:
        if not 0 <= self.val < 1:
            raise ValueError(f"--val must be at least 0 and below 1, got {self.val:g}")
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if not self.seconds > 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds:g}")
        if self.max_pixels < 1:
            raise ValueError(f"--max-pixels must be at least 1, got {self.max_pixels}")


@dataclass
class BuildReport:
    """The results of building an index."""

    rows: int
    added: int
    """Rows that the index did not have."""
    examined: int
    """Files decoded."""
    quarantined: int
    """Files on the quarantine list now."""
    changed: dict[MediaKey, str] = field(default_factory=dict)
    """Files that changed after they were indexed, each with the change in words."""
    notes: list[str] = field(default_factory=list)


def build_index(listing: SourceListing | None, out: Path, options: IndexOptions = IndexOptions()) -> BuildReport:
    """Write the index `out` of the items that a source lists and of the rows that `out` has already.

    Without a source, only the latter. A second process that writes this index waits for the first, and adds its rows. A file is not
    decoded again if its size and time of change are those of its row. A file that cannot be decoded keeps its row (with its known facts,
    or zeros) and goes on the quarantine list. A file that is found well leaves the list. Rows of a split and kind are sorted by path.

    Args:
        listing: The listed source, or None.
        out: The index, a Parquet file.
        options: Options for building it.

    Raises:
        ValueError: `out` is no index and cannot become one, or clips would move to another split.
        FileExistsError: A person has a file of the name of its hashes.
        OSError: The disk is full.
    """
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(lock_beside(out), work=f"index {out}"):
        check_own_sums(out)  # before hours of decoding
        for name in (out, out.with_suffix(".arrow"), out.with_suffix(".classes.txt")):
            remove_left_overs(name)
        return _build(listing, out, options)


def _build(listing: SourceListing | None, out: Path, options: IndexOptions) -> BuildReport:
    stored = read_table(out) if out.exists() else SCHEMA.empty_table()
    old, renamed = rename_splits(stored)
    known = _read_facts(old)
    items, notes = _name_items(listing.items if listing else [], out)
    notes += renamed
    splits = [_split_row(place, item, options) for place, item in items]
    notes += note_own_val(splits, options.val)
    if not options.allow_moves:
        check_splits(old, splits, out)
    classes = number_classes(listing, old, {place for place, _ in items}, out)  # its errors come before hours of decoding
    media = _media(items)
    quarantine = Quarantine.beside(out)
    again = (
        set(known) if options.again else {place for place in known if is_examined_again(quarantine.reasons.get(place, ""), options.seconds)}
    )
    media |= {place: _medium(place, known[place][1], known[place][0], out) for place in known if place in again and place not in media}
    wanted = {
        place: medium for place, medium in media.items() if place in again or place not in known or not _same(known[place][0], medium)
    }
    changed = {
        place: _describe_change(known[place][0], medium)
        for place, medium in wanted.items()
        if place in known and _has_changed(known[place][0], medium)
    }
    facts = {place: fact for place, (fact, _) in known.items()}
    for place, found in _examine(wanted, out, options).items():
        facts[place] = _accept(found, facts.get(place), place, quarantine)
    table = _sort_rows(_table(old, items, facts, classes, options))
    notes += note_overlaps(table)
    classes.write()
    quarantine.write()
    if not out.exists() or not table.equals(stored.cast(table.schema)):
        write_table(table, out)
    else:  # writing equal rows again could change the bytes, and with them the identity of the data
        check_index(out)
    journal_of(out).unlink(missing_ok=True)
    added = len(items) - sum(place in known for place, _ in items)
    files = len({place.whole for place in wanted})
    return BuildReport(
        table.num_rows, added, files, len(quarantine), changed, [*(listing.notes if listing else []), *classes.notes, *notes]
    )


# ---- Names and places ------------------------------------------------------------------------------------------------


def _name_items(items: Iterable[SourceItem], out: Path) -> tuple[list[tuple[MediaKey, SourceItem]], list[str]]:
    """Return the items with their media keys. Items whose names no index can hold are left out and noted."""
    # Resolve links on both sides: the system resolves ".." of a linked folder from the target of the link.
    folder = os.path.realpath(out.parent)
    real = lru_cache(maxsize=None)(os.path.realpath)
    named, unnameable = [], []
    for item in items:
        path = os.path.relpath(os.path.join(real(os.path.dirname(item.file)), os.path.basename(item.file)), folder)
        try:
            path.encode()
        except UnicodeEncodeError:
            unnameable.append(item.file)
        else:
            named.append((MediaKey(path.replace(os.sep, "/"), item.offset, item.begin, item.end), item))
    notes = [f"{len(unnameable)} names are not UTF-8 and are left out, the first: {unnameable[0]!a}"] if unnameable else []
    return named, notes


def _media(items: Iterable[tuple[MediaKey, SourceItem]]) -> dict[MediaKey, MediaFile]:
    found: dict[MediaKey, MediaFile] = {}
    files: dict[str, MediaFile] = {}
    for place, item in items:
        if item.file not in files:
            files[item.file] = stat_media_file(item.file, item.kind)
        file = files[item.file]
        length = file.bytes if item.offset < 0 else item.bytes
        found[place] = MediaFile(item.file, item.kind, item.offset, length, file.modified, file.end)
    return found


def _medium(place: MediaKey, kind: str, facts: MediaFacts, out: Path) -> MediaFile:
    return stat_media_file(str(out.absolute().parent / place.path), kind, place.offset, facts.bytes)


def _read_facts(old: pa.Table) -> dict[MediaKey, tuple[MediaFacts, str]]:
    """Return facts and kind of each row of an index."""
    columns = [old[name].to_pylist() for name in ("kind", *_MEASURED)]
    return {place: (MediaFacts(*measured), kind) for place, kind, *measured in zip(media_keys(old), *columns, strict=True)}


# ---- Examining -------------------------------------------------------------------------------------------------------


def _examine(wanted: dict[MediaKey, MediaFile], out: Path, options: IndexOptions) -> dict[MediaKey, MediaFacts]:
    """Decode the files, except those that the journal has, and return the facts of each place.

    A file is decoded once for all of its pieces.
    """
    found = {
        place: facts
        for place, facts in _read_journal(out)
        if place in wanted and _same(facts, wanted[place]) and not is_examined_again(f"{facts.finding}: {facts.reason}", options.seconds)
    }
    pieces: dict[tuple[str, int], list[MediaKey]] = defaultdict(list)
    for place, medium in wanted.items():
        if place not in found:
            pieces[medium.file, medium.offset].append(place)
    if not pieces:
        return found
    jobs = [
        replace(wanted[of[0]], pieces=tuple((place.begin, place.end) for place in of), max_pixels=options.max_pixels)
        for of in pieces.values()
    ]
    workers, done = min(options.workers, len(jobs)), len({place.whole for place in wanted}) - len(jobs)
    with (
        progress(f"examining {len(jobs) + done} files for {out}", len(jobs) + done, done) as advance,
        _open_journal(out) as journal,
    ):
        outcomes = run_isolated(
            probe_media_file, jobs, workers, options.seconds, _without_decord, lambda medium: total_seconds(medium, options.seconds)
        )
        for medium, facts in outcomes:
            places = pieces[medium.file, medium.offset]
            if isinstance(facts, LostJob):
                reason = describe_lost(facts, options.seconds)
                facts = [MediaFacts(medium.bytes, medium.modified, finding=facts.finding, reason=reason)] * len(places)
            for place, fact in zip(places, facts, strict=True):
                found[place] = fact
                _note(journal, place, fact)
            advance()
    return found


def _without_decord(medium: MediaFile) -> MediaFile | None:
    """Return the second try for a file at which a decoder hung or crashed."""
    return replace(medium, decord=False) if medium.kind == "video" and medium.decord else None


@contextmanager
def progress(words: str, total: int, done: int = 0) -> Iterator[Any]:
    """Show a progress bar on standard error, and yield the function that advances it by one."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(words, total=total, completed=done)
        yield lambda: bar.advance(task)


def _same(facts: MediaFacts, medium: MediaFile) -> bool:
    return (facts.bytes, facts.modified) == (medium.bytes, medium.modified)


def _has_changed(facts: MediaFacts, medium: MediaFile) -> bool:
    """Return whether a file that was sound when it was indexed has been written since."""
    noted = facts.frames and facts.modified and medium.end >= 0
    return bool(noted) and not _same(facts, medium)


def _describe_change(facts: MediaFacts, medium: MediaFile) -> str:
    if facts.bytes == medium.bytes:
        return "written again since it was indexed, with as many bytes"
    return f"{medium.bytes:,} bytes, {facts.bytes:,} when it was indexed"


def journal_of(out: Path) -> Path:
    """Return the path of the notes of the files that were decoded for an index; a build that goes on reads them."""
    return out.with_name(f".{out.name}.journal")


def _note(journal: TextIO, place: MediaKey, facts: MediaFacts) -> None:
    journal.write(json.dumps([place, astuple(facts)]) + "\n")
    journal.flush()


def _open_journal(out: Path) -> TextIO:
    """Open the journal to append to it. A link is not followed: it may lead to any file.

    Raises:
        ValueError: It is no plain file.
    """
    path = journal_of(out)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise ValueError(f"{path} is not a plain file; remove it") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is not a plain file; remove it")
    return os.fdopen(handle, "a", encoding="utf-8")


def _read_journal(out: Path) -> Iterator[tuple[MediaKey, MediaFacts]]:
    path = journal_of(out)
    if path.is_symlink() or not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(MAX_TEXT_BYTES):
            try:
                place, facts = parse_json(line, "the journal")
                found = MediaKey(*place), MediaFacts(*facts)
            except (ValueError, TypeError):  # a line that a crash cut off
                continue
            if _is_sound(found[0], MediaKey("")) and _is_sound(found[1], MediaFacts(0, 0)):
                yield found


def _is_sound(found: MediaKey | MediaFacts, like: MediaKey | MediaFacts) -> bool:
    """Return whether the values of a line of the journal are those of an index."""
    if isinstance(found, MediaFacts) and not all(type(n) is int and n < 2**31 for n in (found.frames, found.width, found.height)):
        return False
    values = [tuple(one) if isinstance(one, MediaKey) else astuple(one) for one in (found, like)]
    return all(
        isinstance(value, (int, float) if type(wanted) is float else type(wanted))
        and (type(value) is bool) == (type(wanted) is bool)
        and (isinstance(value, str) or -1 <= value < 2**63)
        for value, wanted in zip(*values, strict=True)
    )


def _accept(found: MediaFacts, before: MediaFacts | None, place: MediaKey, quarantine: Quarantine) -> MediaFacts:
    """Return the facts for the row, and note in the quarantine list whether the file can be used."""
    if before is not None and not found.finding and found.frames < before.frames and found.bytes < before.bytes:
        # A truncated mkv opens without an error, and has fewer frames.
        found = replace(found, finding="truncated", reason=f"{found.frames} frames, {before.frames} when it was indexed")
    if not found.finding:
        copy = finding_of(quarantine.reasons.get(place, "")) == "duplicate"
        if not copy or before is None or before.bytes != found.bytes:  # `diagnose` decides whether it still is a copy
            quarantine.release(place)
        return found
    quarantine.admit(place, found.finding, found.reason)
    # Facts that were once right stay: if the file comes back whole, it is known again.
    return before if before is not None and before.frames else found


# ---- Rows ------------------------------------------------------------------------------------------------------------


_SAID = (*MediaKey._fields, "kind", "caption", "label", "split", "more_captions")
"""Columns that are not measured."""


def _table(
    old: pa.Table,
    items: list[tuple[MediaKey, SourceItem]],
    facts: dict[MediaKey, MediaFacts],
    classes: ClassNumbers,
    options: IndexOptions,
) -> pa.Table:
    """Return the rows of the items, and the old rows of other places."""
    listed = {place for place, _ in items}
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    known = media_keys(old)
    for name in _SAID:
        rows[name] = [value for place, value in zip(known, old[name].to_pylist(), strict=True) if place not in listed]
    for (place, item), number in zip(items, classes.of(item.label for _, item in items), strict=True):
        row = (*place, item.kind, item.caption, number, _split(item, options), item.more_captions)
        for name, value in zip(_SAID, row, strict=True):
            rows[name].append(value)
    measured = [facts[MediaKey(*place)] for place in zip(*(rows[name] for name in MediaKey._fields), strict=True)]
    for name in _MEASURED:
        rows[name] = [getattr(fact, name) for fact in measured]
    return pa.table({name: pa.array(rows[name], field_type) for name, field_type in zip(LARGE.names, LARGE.types, strict=True)})


def _sort_rows(table: pa.Table) -> pa.Table:
    # "video" before "image", as in every index.
    return table.sort_by([("split", "ascending"), ("kind", "descending"), *((name, "ascending") for name in MediaKey._fields)])


def _split_row(place: MediaKey, item: SourceItem, options: IndexOptions) -> SplitRow:
    split = _split(item, options)
    return SplitRow(place, split, item.family, item.split == split and not (split == "train" and options.val))


def _split(item: SourceItem, options: IndexOptions) -> str:
    split = item.split or normalize_split(options.split) or "train"
    name = item.family or os.path.basename(item.file)
    draw = int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
    return "val" if split == "train" and draw < options.val else split
