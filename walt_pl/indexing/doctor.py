"""The doctor: reports defects of the files of an index, and the use that an experiment makes of them.

`walt_pl.indexing.build_index` decodes the files, each in a process of its own. This module adds the findings that need the whole index:
copies, and clips that are short, of variable rate, interlaced, HDR or without text. It writes two tables beside the index.
`NAME.report.csv` has a row for each finding. For an experiment, `NAME.EXPERIMENT.csv` has a row for each clip and image: used in which
bucket, or why not.
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from walt_pl.data.batch import Kind
from walt_pl.data.index import Index, IndexEntries, MediaKey, media_keys
from walt_pl.data.index_table import KINDS, read_table
from walt_pl.data.quarantine import FINDINGS, Quarantine, finding_of
from walt_pl.data.selection import QUARANTINED, REASONS, USED, Bucket, Selection
from walt_pl.files import read_start, whole_file
from walt_pl.indexing.build_index import BuildReport, IndexOptions, progress
from walt_pl.indexing.isolated_pool import LostJob, run_isolated
from walt_pl.indexing.listing import SourceListing
from walt_pl.indexing.probe_file import MediaFile, digest, stat_media_file
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.media.conversion import convert_with
from walt_pl.media.media_file import Media

_TO_SDR = (
    "-vf zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv420p -c:a copy"
)
"""Options of ffmpeg that make SDR in BT.709 of HDR. PyAV's FFmpeg is built without zscale, so this program cannot do it itself."""
SHORT = 17
"""Frames below which a clip counts as short, where no experiment says how many it needs."""
_NOTICED = {
    "short": f"fewer than {SHORT} frames (--config says what an experiment needs)",
    "variable rate": "frames not evenly spaced: sample by time (data.fps), or the speed of motion varies",
    "interlaced": "two half pictures in a frame, which show as a comb where things move: data.deinterlace: true",
    "hdr": "PQ or HLG, read as if it were SDR: the colours are pale",
    "no caption": "neither a caption nor a class",
    "changed": "written again since they were indexed (told once): decoders do not notice all damage inside a picture",
}
_SHOWN = 5
_ROWS = 1 << 16


@dataclass(frozen=True)
class Finding:
    """A finding about a file or piece that its owner should know; a row of the report."""

    place: MediaKey
    """As in the index."""
    split: str
    kind: str
    finding: str
    """A word of `quarantine.FINDINGS`, "quarantined" (by hand), "short", "variable rate", "interlaced", "hdr", "no caption" or
    "changed"."""
    detail: str


def diagnose(index: Path, options: IndexOptions, changed: Mapping[MediaKey, str]) -> list[Finding]:
    """Return the findings of an index whose files have just been examined, and put copies on the quarantine list.

    Args:
        index: The index.
        options: Options with which it was built.
        changed: Changes that examining the files found (`BuildReport.changed`).

    Raises:
        ValueError: The index cannot be read.
    """
    with hold_lock(lock_beside(index), work=f"index {index}"):
        return _diagnose(index, options, changed)


def _diagnose(index: Path, options: IndexOptions, changed: Mapping[MediaKey, str]) -> list[Finding]:
    table = read_table(index)
    quarantine = Quarantine.beside(index)
    copies = _copies(table, quarantine, index, options)
    for place, reason in list(quarantine.reasons.items()):
        if finding_of(reason) == "duplicate" and place not in copies:
            quarantine.release(place)
    for place, original in copies.items():
        quarantine.admit(place, "duplicate", f"the same bytes as {original}")
    quarantine.write()
    return [*_find_quarantined(table, quarantine), *_find_noticed(table), *_find_changed(table, changed)]


def _copies(table: pa.Table, quarantine: Quarantine, index: Path, options: IndexOptions) -> dict[MediaKey, MediaKey]:
    """Return the files whose bytes equal those of another file, with that file; for a piece, the equal piece of that file.

    A file that is held out stays, and its copy in the training split goes.
    """
    alike: dict[tuple[object, ...], dict[MediaKey, tuple[bool, MediaKey]]] = defaultdict(dict)
    columns = ("kind", "split", "begin", "end", "bytes", "width", "height", "frames")
    for place, kind, split, *size in zip(media_keys(table), *(table[name].to_pylist() for name in columns), strict=True):
        reason = quarantine.reason(place)
        if reason is None or finding_of(reason) == "duplicate":
            rank = (split == "train", place)
            alike[kind, *size][place] = min(rank, alike[kind, *size].get(place, rank))
    ranks = {place: rank for group in alike.values() if len(group) > 1 for place, rank in group.items()}
    sizes = dict(zip(media_keys(table), table["bytes"].to_pylist(), strict=True))
    media = {place.whole: stat_media_file(str(index.absolute().parent / place.path), "", place.offset, sizes[place]) for place in ranks}
    digests = _digests(media, options)
    same: dict[tuple[str, float, float], list[tuple[bool, MediaKey]]] = defaultdict(list)
    for place, rank in ranks.items():
        same[digests[place.whole], place.begin, place.end].append(rank)
    return {place: min(group)[1] for (sha256, *_), group in same.items() if sha256 for _, place in group if place != min(group)[1]}


def _digests(media: Mapping[MediaKey, MediaFile], options: IndexOptions) -> dict[MediaKey, str]:
    if not media:
        return {}
    keys = {(medium.file, medium.offset): place for place, medium in media.items()}
    found: dict[MediaKey, str] = {}
    with progress(f"comparing {len(media)} files of equal size", len(media)) as advance:
        jobs = run_isolated(digest, media.values(), min(options.workers, len(media)), options.seconds)
        for medium, sha256 in jobs:
            found[keys[medium.file, medium.offset]] = "" if isinstance(sha256, LostJob) else sha256
            advance()
    return found


def _list_places(table: pa.Table, places: Iterable[MediaKey]) -> Iterable[tuple[MediaKey, str, str]]:
    """Return place, split and kind of the rows of some files; other pieces and members of the files may be among them."""
    rows = table.filter(pc.is_in(table["path"], pa.array(sorted({place.path for place in places}), pa.large_string())))
    return zip(media_keys(rows), rows["split"].to_pylist(), rows["kind"].to_pylist(), strict=True)


def _find_quarantined(table: pa.Table, quarantine: Quarantine) -> Iterable[Finding]:
    for place, split, kind in _list_places(table, quarantine.reasons):
        reason = quarantine.reason(place)
        if reason is not None:
            finding = finding_of(reason)
            yield Finding(place, split, kind, finding or "quarantined", reason.removeprefix(f"{finding}: ") if finding else reason)


def _find_noticed(table: pa.Table) -> Iterable[Finding]:
    """Yield findings that may be intended."""
    sound = pc.greater(table["frames"], 0)
    video = pc.and_(pc.equal(table["kind"], "video"), sound)
    wordless = pc.and_(pc.equal(table["caption"], ""), pc.less(table["label"], 0))
    noticed = {
        "short": (pc.and_(video, pc.less(table["frames"], SHORT)), "frames"),
        "variable rate": (pc.and_(video, table["variable_rate"]), "fps"),
        "interlaced": (pc.and_(video, table["interlaced"]), None),
        "hdr": (pc.and_(video, table["hdr"]), None),
        "no caption": (pc.and_(sound, wordless), None),
    }
    for finding, (where, column) in noticed.items():
        rows = table.filter(where)
        for place, row in zip(media_keys(rows), rows.to_pylist(), strict=True):
            detail = "" if column is None else f"{row[column]:g} {column}{' on average' if column == 'fps' else ''}"
            yield Finding(place, row["split"], row["kind"], finding, detail)


def _find_changed(table: pa.Table, changed: Mapping[MediaKey, str]) -> Iterable[Finding]:
    for place, split, kind in _list_places(table, changed):
        if place in changed:
            yield Finding(place, split, kind, "changed", changed[place])


def write_report(findings: Sequence[Finding], index: Path) -> Path:
    """Write `NAME.report.csv` beside the index, whole or not at all, and return its path."""
    columns = [*MediaKey._fields, "split", "kind", "finding", "detail"]
    rows = ((*found.place, found.split, found.kind, found.finding, found.detail) for found in findings)
    return write_rows(index.with_suffix(".report.csv"), columns, rows)


def write_use(index: Path, name: str, selections: Mapping[str, Mapping[Kind, Selection]], buckets: Sequence[Bucket]) -> Path:
    """Write `NAME.EXPERIMENT.csv` beside the index: each clip and image, used in which bucket, or why not.

    Args:
        index: The index.
        name: Name of the experiment.
        selections: Selections by split and kind, for all entries of that split and kind. A kind that the experiment does not read is
            missing.
        buckets: Sizes that the selections' bucket numbers refer to.

    Returns:
        The path of the table.
    """
    columns = [*MediaKey._fields, "split", "kind", "used", "bucket", "reason"]
    return write_rows(index.with_suffix(f".{name}.csv"), columns, _list_used(index, selections, buckets))


def _list_used(index: Path, selections: Mapping[str, Mapping[Kind, Selection]], buckets: Sequence[Bucket]) -> Iterator[tuple[object, ...]]:
    quarantine = Quarantine.beside(index)
    for split in sorted(pc.unique(read_table(index)["split"]).to_pylist()):
        listed = Index(index, split)
        kinds: Mapping[Kind, IndexEntries] = {"video": listed.videos, "image": listed.images}
        for kind, entries in kinds.items():
            selection = selections.get(split, {}).get(kind)
            for start in range(0, len(entries), _ROWS):
                part, here = entries[start : start + _ROWS], slice(start, start + _ROWS)
                places = part.places(np.arange(len(part)))
                if selection is None:
                    yield from ((*place, split, kind, "no", "", f'no {kind} of split "{split}" is read') for place in places)
                    continue
                for place, bucket, reason in zip(places, selection.bucket[here], selection.reason[here], strict=True):
                    used = reason == USED
                    words = "" if used else f"{REASONS[reason]}: {quarantine.reason(place)}" if reason == QUARANTINED else REASONS[reason]
                    yield (*place, split, kind, "yes" if used else "no", str(buckets[bucket]) if used else "", words)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV whole or not at all, and return its path.

    Raises:
        ValueError: There is a file of this name that is no such table.
    """
    if os.path.lexists(path) and not is_table(path):
        raise ValueError(f"{path} is no table of this program and is not replaced: move it away, or name the index otherwise (--out)")
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
    return path


def is_table(path: Path) -> bool:
    """Return whether a file begins like the tables of the doctor."""
    beginning = ",".join([*MediaKey._fields, "split", "kind"]).encode()
    return path.is_file() and read_start(path, len(beginning)) == beginning


def render_findings(findings: Sequence[Finding], index: Path) -> RenderableType:
    """Render the findings for a terminal: the count of each kind, and the first ones."""
    if not findings:
        return f"{index}: nothing is wrong with any file"
    counts = Counter(finding.finding for finding in findings)
    table = Table("finding", "videos", "images", "loaded?", "first of them", title=Text(str(index)), title_justify="left")
    for name in (*FINDINGS, "quarantined", *_NOTICED):
        if not counts[name]:
            continue
        these = [finding for finding in findings if finding.finding == name]
        kinds = [str(sum(finding.kind == kind for finding in these) or "") for kind in KINDS]
        shown = [f"{finding.place}: {finding.detail}".removesuffix(": ") for finding in these[:_SHOWN]]
        more = [f"... and {len(these) - _SHOWN} more"] if len(these) > _SHOWN else []
        table.add_row(name, *kinds, "yes" if name in _NOTICED else "no", Text("\n".join([*shown, *more])))
    notes = [Text(f"{name}: {text}") for name, text in _NOTICED.items() if counts[name]]
    return Group(table, *notes)


def render_conversion(findings: Sequence[Finding], index: Path) -> str:
    """Return the command that makes SDR of the first HDR file, "" where there is none. It is text: no table breaks its line."""
    place = next((finding.place for finding in findings if finding.finding == "hdr"), None)
    if place is None:
        return ""
    return f"hdr: {convert_with(Media(index.absolute().parent / place.path, place.offset), '', _TO_SDR)}"


def render_build(built: BuildReport, listing: SourceListing | None, index: Path) -> str:
    """Describe in a few lines what was done."""
    lines = [f"{index}: {built.rows:,} rows, {built.added:,} of them new; {built.examined:,} files examined"]
    if listing is not None:
        lines[0] += f" (layout {listing.layout})"
    if built.quarantined:
        lines.append(f"{built.quarantined:,} files are not used, for the reasons in {Quarantine.beside(index).path}")
    if built.changed:
        place, how = next(iter(built.changed.items()))
        files = len({place.whole for place in built.changed})
        lines.append(f"{files:,} files are not as they were when they were indexed, the first: {place.path}: {how}")
    return "\n".join([*lines, *built.notes])
