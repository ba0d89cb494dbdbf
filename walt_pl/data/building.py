"""Builds and extends an index: examines what is new, in many processes, and goes on where it was interrupted.

What was examined is noted at once in a journal beside the index (`.NAME.parquet.journal`), which goes when the index is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from walt_pl.data.apart import Lost, run_apart
from walt_pl.data.examine import Facts, Medium, examine, medium_of
from walt_pl.data.index import SCHEMA, read_table, write_table
from walt_pl.data.quarantine import Quarantine, finding_of
from walt_pl.data.sources import Item, Listing

Key = tuple[str, int]
"""Path as written in the index, and offset."""

_MEASURED = [column.name for column in fields(Facts) if column.name in SCHEMA.names]


@dataclass(frozen=True)
class Options:
    """How an index is built."""

    again: bool = False
    """Examine everything that is listed or was indexed, not only what is new."""
    split: str = ""
    """Split of what the source gives none; "train" where this is empty."""
    val: float = 0.0
    """Share of the training split that is held out as "val", 0..1. It follows from the names: what is added later changes nothing."""
    workers: int = 1
    """Processes that decode."""
    seconds: float = 60.0
    """Time limit of a file; one of more than 10 MB has as much again for every further 10 MB."""

    def __post_init__(self) -> None:
        if not 0 <= self.val < 1:
            raise ValueError(f"--val must be at least 0 and below 1, got {self.val:g}")
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if not self.seconds > 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds:g}")


@dataclass
class Built:
    """What building an index did."""

    rows: int
    added: int
    """Rows that the index did not have."""
    examined: int
    """Files decoded."""
    quarantined: int
    """Files on the quarantine list now."""
    changed: dict[Key, str] = field(default_factory=dict)
    """Files that are not as they were when they were indexed, and how, in words."""
    notes: list[str] = field(default_factory=list)


def build_index(listing: Listing | None, out: Path, options: Options = Options()) -> Built:
    """Write the index `out` of what a source lists, beside what `out` lists already; without a source, of the latter alone.

    A file whose size and time of change are those of its row is not decoded again. One that cannot be decoded keeps its row (with what is
    known of it, or zeros) and goes on the quarantine list; a file found well leaves it. Rows of a split and kind are sorted by path.

    Raises:
        ValueError: `out` is no index and cannot become one.
        OSError: The disk is full.
    """
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    old = read_table(out) if out.exists() else SCHEMA.empty_table()
    known = _known(old)
    items, notes = _named(listing.items if listing else [], out)
    media = _media(items, out)
    if options.again:
        media |= {key: _medium(key, known[key][1], known[key][0], out) for key in known if key not in media}
    wanted = {key: medium for key, medium in media.items() if options.again or key not in known or not _same(known[key][0], medium)}
    quarantine = Quarantine.beside(out)
    changed = {key: _change(known[key][0], medium) for key, medium in wanted.items() if key in known and _changed(known[key][0], medium)}
    facts = {key: fact for key, (fact, _) in known.items()}
    for key, found in _examine(wanted, out, options).items():
        facts[key] = _judged(found, facts.get(key), key, quarantine)
    numbers = _numbers(listing, out)
    table = _sorted(_table(old, items, facts, numbers, options))
    quarantine.write()
    if not table.equals(old.cast(table.schema)) or not out.with_suffix(".arrow").exists():
        write_table(table, out)
    _journal(out).unlink(missing_ok=True)
    added = len(items) - sum(key in known for key, _ in items)
    return Built(table.num_rows, added, len(wanted), len(quarantine), changed, [*(listing.notes if listing else []), *notes])


# ---- Names and places ------------------------------------------------------------------------------------------------


def _named(items: Iterable[Item], out: Path) -> tuple[list[tuple[Key, Item]], list[str]]:
    """The items with their keys; those whose names no index can hold are left out, and said."""
    # Real folders on both sides: the system takes ".." of a linked folder from where the link leads.
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
            named.append(((path.replace(os.sep, "/"), item.offset), item))
    notes = [f"{len(unnameable)} names are not UTF-8 and are left out, the first: {unnameable[0]!a}"] if unnameable else []
    return named, notes


def _media(items: Iterable[tuple[Key, Item]], out: Path) -> dict[Key, Medium]:
    found: dict[Key, Medium] = {}
    shards: dict[str, Medium] = {}
    for key, item in items:
        if item.offset < 0:
            found[key] = medium_of(item.file, item.kind)
            continue
        if item.file not in shards:
            shards[item.file] = medium_of(item.file, item.kind)
        shard = shards[item.file]
        found[key] = Medium(item.file, item.kind, item.offset, item.bytes, shard.modified, shard.end)
    return found


def _medium(key: Key, kind: str, facts: Facts, out: Path) -> Medium:
    return medium_of(str(out.absolute().parent / key[0]), kind, key[1], facts.bytes)


def _known(old: pa.Table) -> dict[Key, tuple[Facts, str]]:
    """Facts and kind of what an index lists."""
    columns = [old[name].to_pylist() for name in ("path", "offset", "kind", *_MEASURED)]
    return {(path, offset): (Facts(*measured), kind) for path, offset, kind, *measured in zip(*columns, strict=True)}


# ---- Examining -------------------------------------------------------------------------------------------------------


def _examine(wanted: dict[Key, Medium], out: Path, options: Options) -> dict[Key, Facts]:
    """What decoding each of them finds, with the journal's part of it."""
    found = {key: facts for key, facts in _read_journal(out) if key in wanted and _same(facts, wanted[key])}
    keys = {(medium.file, medium.offset): key for key, medium in wanted.items() if key not in found}
    if not keys:
        return found
    jobs = [wanted[key] for key in keys.values()]
    workers = min(options.workers, len(jobs))
    with progress(f"examining {len(wanted)} files for {out}", len(wanted), len(found)) as advance, _journal(out).open("a") as journal:
        for medium, facts in run_apart(examine, jobs, workers, lambda medium: limit(medium, options.seconds), _without_decord):
            key = keys[medium.file, medium.offset]
            if isinstance(facts, Lost):
                facts = Facts(medium.bytes, medium.modified, finding=facts.finding, reason=facts.reason)
            found[key] = facts
            _note(journal, key, facts)
            advance()
    return found


def _without_decord(medium: Medium) -> Medium | None:
    """How a file is tried again at which a decoder hung or crashed."""
    return replace(medium, decord=False) if medium.kind == "video" and medium.decord else None


def limit(medium: Medium, seconds: float) -> float:
    """Seconds that a file may take."""
    return seconds * max(1.0, medium.bytes / 10e6)


@contextmanager
def progress(words: str, total: int, done: int = 0) -> Iterator[Any]:
    """A progress bar on standard error; gives the function that moves it on by one."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(words, total=total, completed=done)
        yield lambda: bar.advance(task)


def _same(facts: Facts, medium: Medium) -> bool:
    return (facts.bytes, facts.modified) == (medium.bytes, medium.modified)


def _changed(facts: Facts, medium: Medium) -> bool:
    """Whether a file that was sound when it was indexed has been written since."""
    noted = facts.frames and facts.modified and medium.end >= 0
    return bool(noted) and not _same(facts, medium)


def _change(facts: Facts, medium: Medium) -> str:
    if facts.bytes == medium.bytes:
        return "written again since it was indexed, with as many bytes"
    return f"{medium.bytes:,} bytes, {facts.bytes:,} when it was indexed"


def _journal(out: Path) -> Path:
    return out.with_name(f".{out.name}.journal")


def _note(journal: TextIO, key: Key, facts: Facts) -> None:
    journal.write(json.dumps([*key, *astuple(facts)]) + "\n")
    journal.flush()


def _read_journal(out: Path) -> Iterator[tuple[Key, Facts]]:
    path = _journal(out)
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            try:
                name, offset, *facts = json.loads(line)
                yield (name, offset), Facts(*facts)
            except (ValueError, TypeError):  # what was written when the power went
                continue


def _judged(found: Facts, before: Facts | None, key: Key, quarantine: Quarantine) -> Facts:
    """The facts that the row gets. The quarantine list learns whether the file can be used."""
    if before is not None and not found.finding and found.frames < before.frames and found.bytes < before.bytes:
        # A truncated mkv opens without an error and is just shorter.
        found = replace(found, finding="truncated", reason=f"{found.frames} frames, {before.frames} when it was indexed")
    if not found.finding:
        copy = finding_of(quarantine.reasons.get(key, "")) == "duplicate"
        if not copy or before is None or before.bytes != found.bytes:  # whether it still is a copy, `diagnose` finds out
            quarantine.release(*key)
        return found
    quarantine.admit(*key, found.finding, found.reason)
    # What was once right stays: a file that comes back whole is then known again.
    return before if before is not None and before.frames else found


# ---- Rows ------------------------------------------------------------------------------------------------------------


def _numbers(listing: Listing | None, out: Path) -> dict[str, int]:
    """Number of each class that has a name: its line in NAME.classes.txt, from 0. New names go to its end: no number ever changes."""
    path = out.with_suffix(".classes.txt")
    names = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = set(names)
    fresh = {item.label for item in listing.items if isinstance(item.label, str)} if listing else set()
    order = [*(listing.classes if listing and fresh else []), *sorted(fresh)]
    more = [name for name in dict.fromkeys(order) if name not in known]
    if more:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(f"{name}\n" for name in [*names, *more]), encoding="utf-8")
        os.replace(temporary, path)
    return {name: number for number, name in enumerate([*names, *more])}


def _table(old: pa.Table, items: list[tuple[Key, Item]], facts: dict[Key, Facts], numbers: dict[str, int], options: Options) -> pa.Table:
    """Rows of the items, and the old ones of other files."""
    listed = {key for key, _ in items}
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    old_keys = list(zip(old["path"].to_pylist(), old["offset"].to_pylist(), strict=True))
    for name in ("path", "offset", "kind", "caption", "label", "split"):
        rows[name] = [value for key, value in zip(old_keys, old[name].to_pylist(), strict=True) if key not in listed]
    for key, item in items:
        number = numbers[item.label] if isinstance(item.label, str) else item.label
        row = (*key, item.kind, item.caption, number, _split(item, options))
        for name, value in zip(("path", "offset", "kind", "caption", "label", "split"), row, strict=True):
            rows[name].append(value)
    measured = [facts[key] for key in zip(rows["path"], rows["offset"], strict=True)]
    for name in _MEASURED:
        rows[name] = [getattr(fact, name) for fact in measured]
    return pa.table({name: pa.array(rows[name], field_type) for name, field_type in zip(SCHEMA.names, _types(), strict=True)})


def _types() -> list[pa.DataType]:
    return [pa.large_string() if column.type == pa.string() else column.type for column in SCHEMA]


def _sorted(table: pa.Table) -> pa.Table:
    # "video" before "image", as in every index.
    return table.sort_by([("split", "ascending"), ("kind", "descending"), ("path", "ascending"), ("offset", "ascending")])


def _split(item: Item, options: Options) -> str:
    split = item.split or options.split or "train"
    name = item.family or os.path.basename(item.file)
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "val" if split == "train" and draw < options.val else split
