"""Fields of the rows of a table: each is there once, and their types in a JSONL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

_KINETICS = ("youtube_id", "time_start", "time_end")
_KNOWN = ("path", "file_name", "kind", "caption", "text", "label", "split", "begin", "end", "duration", *_KINETICS)
_TEXTS = ("path", "file_name", "kind", "split")
_AS_THEY_ARE = ("caption", "text", "label")


def check_names(names: Iterable[str], where: str) -> None:
    """Check that no field that is used is there twice. Upper and lower case do not matter.

    Args:
        names: Names of the columns of a CSV, or of the fields of a row of a JSONL.
        where: File and line, for the error message.

    Raises:
        ValueError: One is there twice.
    """
    counts = Counter(name.strip().lower() for name in names)
    for name in _KNOWN:
        if counts[name] > 1:
            more = '; for several captions write a row for each, or a .jsonl with "caption": ["a dog", "a cat"]'
            raise ValueError(f"{where}: column {name} is there more than once, wanted once{more if name in ('caption', 'text') else ''}")


def read_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a row by name in lower case: captions and labels as they are, all others as text. Nulls are left out.

    Args:
        row: The row, as JSON gives it.
        where: File and line, for the error message.

    Raises:
        ValueError: A field that is text by its meaning has another type, or a name is there twice, such as "label" and "Label".
    """
    check_names(row, where)
    fields = {name.strip().lower(): value for name, value in row.items() if value is not None}
    for name in _TEXTS:
        if name in fields and not isinstance(fields[name], str):
            raise ValueError(f'{where}: "{name}" must be text, found {str(fields[name])[:60]}')
    return {name: value if name in _AS_THEY_ARE else str(value) for name, value in fields.items()}
