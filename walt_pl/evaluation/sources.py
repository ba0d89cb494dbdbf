"""Open a source of clips by the text that a person typed."""

from __future__ import annotations

from pathlib import Path

from walt_pl.evaluation.array_source import ArraySource
from walt_pl.evaluation.folder_source import FolderSource
from walt_pl.evaluation.index_source import IndexSource
from walt_pl.evaluation.source import ClipSource

WANTED = "a folder of videos or images, a data index (.parquet), or an array (.npz, .npy)"
"""Sources, in words."""


def open_source(text: str, split: str) -> ClipSource:
    """Open a folder, an index or an array.

    Args:
        text: path, as typed.
        split: split of an index; "all" takes every split. Other sources have none.

    Raises:
        ValueError: there is no such source, or nothing in it that can be measured.
    """
    path = Path(text)
    if path.is_dir():
        if is_run(text):
            raise ValueError(f"{text} is a run (it holds manifest.json), and real clips are wanted: name {WANTED}")
        return FolderSource(text)
    if not path.exists():
        raise ValueError(f"{text}: no such file or folder; wanted {WANTED}")
    if path.suffix == ".parquet":
        return IndexSource(text, split)
    if path.suffix in (".npz", ".npy"):
        return ArraySource(text)
    raise ValueError(f"{text}: no source of clips; wanted {WANTED}")


def is_run(text: str) -> bool:
    """Return whether a source is the folder of a run."""
    return (Path(text) / "manifest.json").exists()
