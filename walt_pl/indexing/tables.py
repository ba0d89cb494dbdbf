"""Tables of clips and images: CSV and JSONL files."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from walt_pl.indexing.listing import SourceItem, SourceListing, read_text
from walt_pl.media.extensions import kind_of


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
    items, ignored = [], set[str]()
    for number, row in read_rows(source):
        where = f"{source}:{number}"
        path = row.pop("path", None) or row.pop("file_name", None)
        if not path:
            raise ValueError(f'{where}: no "path" (found: {", ".join(row) or "nothing"})')
        kind = row.pop("kind", None) or kind_of(path)
        if kind not in ("video", "image"):
            raise ValueError(f'{where}: {path} is neither video nor image by its ending; a column "kind" may say so, found "{kind}"')
        caption = " ".join((row.pop("caption", None) or row.pop("text", None) or "").split())
        label = row.pop("label", "")
        begin, end = _piece(row, kind, where)
        items.append(SourceItem(str(root / path), kind, caption, label if label else -1, row.pop("split", ""), begin=begin, end=end))
        ignored |= set(row) - {"path", "file_name", "caption", "text"}
    # Labels become numbers only if all of them are: a class may be called "2012".
    if all(item.label == -1 or re.fullmatch(r"-?\d+", str(item.label)) for item in items):
        items = [replace(item, label=int(item.label)) for item in items]
    return SourceListing("table", items, [f"columns not used: {', '.join(sorted(ignored))}"] if ignored else [])


def _piece(row: dict[str, str], kind: str, where: str) -> tuple[float, float]:
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


def read_rows(source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV or JSONL file with their line numbers. Nulls are left out, and all other values are text.

    Raises:
        ValueError: A line is not a row. The message names it.
    """
    # Not str.splitlines: it also breaks at characters that captions may hold.
    lines = io.StringIO(read_text(source), newline="")
    if source.suffix.lower() == ".jsonl":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _json_row(line, f"{source}:{number}")
        return
    rows = csv.DictReader(lines, strict=True)
    try:
        for row in rows:
            if None in row:
                raise ValueError(f'{source}:{rows.line_num}: more fields than columns; put "..." around text with commas')
            yield rows.line_num, {name.strip().lower(): value.strip() for name, value in row.items() if value}
    except csv.Error as error:
        raise ValueError(f"{source}:{rows.line_num}: not CSV: {error}") from error


def _json_row(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: wanted an object like {{"path": "a.mp4", "caption": "..."}}, found {line.strip()[:60]}')
    return {str(name).lower(): str(value) for name, value in row.items() if value is not None}
