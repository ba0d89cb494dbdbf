"""Read metrics.csv of the logger csv with limits: curves of numbers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from walt_pl.report.event_file import MAX_TAG, MAX_TAGS, Curve, EventFile
from walt_pl.untrusted import UntrustedError, read_bytes

CSV_NAME = "metrics.csv"
MAX_CSV_BYTES = 64 << 20
"""Bytes of metrics.csv. A row has about 200."""


def read_csv_file(path: Path) -> EventFile:
    """Return the curves of metrics.csv, as `read_event_file` does; the file has no times and no pictures.

    A training that goes on appends to the file. Of each tag, its values count alone from the first step that they repeat. A damaged file
    gives the rows before the damage, and a problem.
    """
    found = EventFile()
    try:
        content = read_bytes(path, MAX_CSV_BYTES)
        rows = csv.reader(io.StringIO(content[: content.rfind(b"\n") + 1].decode()))  # a kill within a row leaves a part of a number
        header = next(rows, [])
        tags = _tags(header, found, path)
        place = header.index("step") if header else 0
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row has {len(row)} values for {len(header)} columns")
            _add_row(found, tags, int(row[place]), row)
    except FileNotFoundError:
        pass  # another logger writes none
    except (UntrustedError, ValueError, OverflowError, csv.Error) as error:
        found.problems.append(f"{path.name} is damaged ({error}): its values up to there are shown.")
    return found


def _tags(header: list[str], found: EventFile, path: Path) -> dict[int, str]:
    """Return the tags by the number of their column."""
    tags = {number: tag for number, tag in enumerate(header) if tag != "step"}
    if any(len(tag) > MAX_TAG for tag in tags.values()):
        found.problems.append(f"{path.name} has a tag of more than {MAX_TAG} characters: its values are left out.")
    tags = {number: tag for number, tag in tags.items() if len(tag) <= MAX_TAG}
    if len(tags) > MAX_TAGS:
        found.problems.append(f"{path.name} has more than {MAX_TAGS} tags: values of further ones are left out.")
    return dict(list(tags.items())[:MAX_TAGS])


def _add_row(found: EventFile, tags: dict[int, str], step: int, row: list[str]) -> None:
    for number, tag in tags.items():
        if not row[number]:
            continue
        value = float(row[number])
        curve = found.curves.setdefault(tag, Curve())
        while curve.steps and curve.steps[-1] >= step:
            curve.steps.pop()
            curve.values.pop()
        curve.steps.append(step)
        curve.values.append(value)
