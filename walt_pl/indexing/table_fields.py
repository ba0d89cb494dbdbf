"""Fields of a row of a JSONL table: their types."""

from __future__ import annotations

from typing import Any

_TEXTS = ("path", "file_name", "kind", "split")
_AS_THEY_ARE = ("caption", "text", "label")


def read_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a row by name in lower case: captions and labels as they are, all others as text. Nulls are left out.

    Args:
        row: The row, as JSON gives it.
        where: File and line, for the error message.

    Raises:
        ValueError: A field that is text by its meaning has another type.
    """
    fields = {str(name).lower(): value for name, value in row.items() if value is not None}
    for name in _TEXTS:
        if name in fields and not isinstance(fields[name], str):
            raise ValueError(f'{where}: "{name}" must be text, found {str(fields[name])[:60]}')
    return {name: value if name in _AS_THEY_ARE else str(value) for name, value in fields.items()}
