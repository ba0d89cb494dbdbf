"""Tables of clips and images: CSV and JSONL files."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from walt_pl.data.caption_values import read_captions
from walt_pl.data.labels import MISSING, NO_LABEL, read_label
from walt_pl.indexing.class_numbers import FirstLabels
from walt_pl.indexing.listing import SourceItem, SourceListing, read_lines
from walt_pl.indexing.matching_names import find_on_disk
from walt_pl.indexing.table_fields import check_names, read_fields
from walt_pl.media.extensions import kind_of
from walt_pl.untrusted import UntrustedError, parse_json

MAX_SECONDS = 1e9
"""Second at which a piece may end: 30 years."""


def list_table(source: Path, root: Path) -> SourceListing:
    """List a CSV or JSONL file with a row for each clip.

    The column path (or file_name) is required. Optional are caption (or text), label, split and kind. A row with `begin` is a piece of a
    video; `end` or `duration` may limit it.

    Args:
        source: The CSV or JSONL file.
        root: Folder that the paths are relative to.

    Raises:
        ValueError: A row is wrong. The message names its line.
    """
    items, ignored, left_out, beside, first = [], set[str](), list[str](), list[str](), FirstLabels()
    for number, row in read_rows(source, left_out):
        where = f"{source}:{number}"
        path = row.pop("path", None) or row.pop("file_name", None)
        if not path:
            raise ValueError(f'{where}: no "path" (found: {", ".join(row)[:200] or "nothing"})')
        kind = row.pop("kind", None) or kind_of(path)
        if kind not in ("video", "image"):
            found = f'{path[:200]} is neither video nor image by its ending; a column "kind" may say so, found "{str(kind)[:200]}"'
            raise ValueError(f"{where}: {found}")
        caption, *more = _captions(row, where, beside) or [""]
        label, findings = _label(row.pop("label", ""), where)
        first.add(label, where)
        begin, end = _piece(row, kind, where)
        if max(begin, end) > MAX_SECONDS:
            left_out.append(f"{where}: a piece from {begin:g} to {end:g} s")
            continue
        item = SourceItem(str(root / path), kind, caption, label, row.pop("split", ""), begin=begin, end=end)
        items.append(replace(item, more_captions=tuple(more), findings=findings) if more or findings else item)
        ignored |= set(row) - {"path", "file_name", "caption", "text"}
    notes = [f"columns not used: {', '.join(sorted(ignored))[:1000]}"] if ignored else []
    if beside:
        notes.append(f'"text" is not used beside another "caption": {len(beside):,} rows, the first: {beside[0]}')
    if left_out:
        notes.append(f"{len(left_out):,} rows are left out, the first: {left_out[0][:400]}")
    items, unclear = find_on_disk(items)
    return SourceListing("table", items, [*notes, *unclear], mixture=first.describe_mixture())


def _label(text: Any, where: str) -> tuple[int | str, tuple[tuple[str, str], ...]]:
    """Return the label of a row, and the finding that says why it has none although it names one.

    Raises:
        ValueError: It is a mistake, such as a fraction.
    """
    try:
        return read_label(text), (("label", f'"{text}" stands for none'),) if text != "" and str(text) in MISSING else ()
    except UntrustedError as error:
        return NO_LABEL, (("label", str(error)),)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _captions(row: dict[str, Any], where: str, beside: list[str]) -> tuple[str, ...]:
    """Return the captions of a row, those of "text" where "caption" has none. Note in `beside` where "text" says something else."""
    try:
        if captions := read_captions(row.get("caption")):
            beside += [where] if row.get("text", row["caption"]) not in ("", [], row["caption"]) else []
            return captions
        return read_captions(row.get("text"))
    except ValueError as error:
        raise ValueError(f"{where}: caption: {error}") from error


def _piece(row: dict[str, Any], kind: str, where: str) -> tuple[float, float]:
    """Remove begin and end of a row's piece from the row, and return them in seconds.

    Without `begin`, a `duration` is that of the file. Beside `end`, it may be that too, and is not used.
    """
    if "begin" not in row:
        return 0.0, 0.0
    if kind != "video":
        raise ValueError(f"{where}: begin names a piece of a video, and this is an image")
    begin = _seconds(row.pop("begin"), where)
    if "end" in row:
        end = _seconds(row.pop("end"), where)
    elif "duration" in row:
        end = round(begin + _seconds(row.pop("duration"), where), 6)
    else:
        return begin, 0.0
    if end <= begin:
        raise ValueError(f"{where}: a piece ends behind its beginning, found {begin:g} to {end:g} s")
    return begin, end


def _seconds(text: str, where: str) -> float:
    """Convert seconds ("62.5") or hours, minutes and seconds ("0:01:02.5", "01:02.5") to seconds."""
    found = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?(?:[eE]-?\d+)?)", text.strip())
    if found is None:
        raise ValueError(f'{where}: wanted seconds like 62.5, or 0:01:02.5, found "{text}"')
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return round(3600 * hours + 60 * minutes + seconds, 6)


def read_rows(source: Path, left_out: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a CSV or JSONL file with their line numbers. Nulls are left out, and all other values are text.

    A caption of a JSONL is as JSON gives it: it may be a list.

    Args:
        source: The file.
        left_out: Gets a note for each row that no person writes by mistake: one of enormous size, nested deeply, or with text that is not
            Unicode.

    Raises:
        ValueError: A line is not a row. The message names it.
    """
    # Not str.splitlines: it also breaks at characters that captions may hold.
    lines = read_lines(source, left_out)
    if source.suffix.lower() == ".jsonl":
        for number, line in enumerate(lines, 1):
            if line.strip() and (found := _json_row(line, f"{source}:{number}", left_out)) is not None:
                yield number, found
        return
    rows, checked = csv.DictReader(lines, strict=True), False
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger" not in str(error):
                raise ValueError(f"{source}:{rows.line_num}: not CSV: {error}") from error
            left_out.append(f"{source}:{rows.line_num}: {error}")
            if rows._fieldnames is None:  # type: ignore[attr-defined]  # the header itself: without it, the rows mean nothing
                raise ValueError(f"{source}:{rows.line_num}: not CSV: {error}") from error
            continue
        if not checked:
            checked = True
            check_names(rows.fieldnames or [], f"{source}:1")
        if None in row:
            raise ValueError(f'{source}:{rows.line_num}: more fields than columns; put "..." around text with commas')
        yield rows.line_num, {name.strip().lower(): value.strip() for name, value in row.items() if value}


def _json_row(line: str, where: str, left_out: list[str]) -> dict[str, Any] | None:
    try:
        row = parse_json(line, where)
    except UntrustedError as error:
        if _is_mistake(line):
            raise ValueError(f"{where}: not JSON: {error}") from error
        left_out.append(str(error))
        return None
    if not isinstance(row, dict):
        raise ValueError(f'{where}: wanted an object like {{"path": "a.mp4", "caption": "..."}}, found {line.strip()[:60]}')
    return read_fields(row, where)


def _is_mistake(line: str) -> bool:
    """Return whether a line that cannot be used is one of wrong syntax."""
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False
