"""Match names that differ in their Unicode form alone: of media and the texts beside them, and of tables' paths and the disk."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from walt_pl.indexing.listing import SourceItem
from walt_pl.plain_text import unify

Text = TypeVar("Text")


class TextsByName(Generic[Text]):
    """Texts beside media, found by the name without its ending. Upper and lower case of that name differ.

    A name in the very same Unicode form comes before one in another form.
    """

    def __init__(self) -> None:
        self._texts: dict[str, list[tuple[str, Text]]] = defaultdict(list)

    def add(self, name: str, text: Text) -> None:
        """Add a text under its name without ending."""
        self._texts[unify(name)].append((name, text))

    def find(self, name: str) -> list[Text]:
        """Return the texts of a medium; more than one if several have its name."""
        found = self._texts.get(unify(name), [])
        return [text for own, text in found if own == name] or [text for _, text in found]

    def leave(self, names: Iterable[str]) -> list[Text]:
        """Return the texts that belong to none of the media."""
        taken = {unify(name) for name in names}
        return [text for name, found in self._texts.items() if name not in taken for _, text in found]


def describe_two(names: Collection[str]) -> str:
    """Return the finding of a medium with several texts."""
    return f"{len(names)} texts, {' and '.join(sorted(names))}; keep one of them"


def describe_loose(texts: Collection[str]) -> list[str]:
    """Return a note on the texts that belong to no medium, if there are some."""
    why = "a text has the name of its file, in the same upper and lower case"
    return [f"texts that belong to no file: {len(texts):,} ({why}), the first: {min(texts)}"] if texts else []


def describe_untold(items: Collection[SourceItem]) -> list[str]:
    """Return a note on the files that have no text where others have one."""
    untold = [item for item in items if not item.caption and not {"caption", ".json"} & {name for name, _ in item.findings}]
    told = any(item.caption for item in items)
    return [f"{len(untold):,} of {len(items):,} files have no text beside them, the first: {_name(untold[0])}"] if told and untold else []


def _name(item: SourceItem) -> str:
    return item.file if item.offset < 0 else f"{item.file}/{item.family.rpartition('/')[2]}"


def find_on_disk(items: Iterable[SourceItem]) -> tuple[list[SourceItem], list[str]]:
    """Return the items of a table with paths as the disk writes them, where only the Unicode form differs.

    Returns:
        The items, and a note if several names on disk differ from a path in that form alone. Such a path stays as it is written.
    """
    names: dict[str, dict[str, list[str]]] = {}
    found, unclear = [], []
    for item in items:
        paths = [item.file] if item.file.isascii() or os.path.lexists(item.file) else _other_forms(item.file, names)
        unclear += [item.file] if len(paths) > 1 else []
        found.append(replace(item, file=paths[0]) if len(paths) == 1 else item)
    why = "several names on disk differ from them in their Unicode form alone; rename these"
    return found, [f"{len(unclear):,} paths are not there, and {why}, the first: {unclear[0]!a}"] if unclear else []


def _other_forms(path: str, names: dict[str, dict[str, list[str]]]) -> list[str]:
    """Return the files that a path may mean. `names` remembers the entries of folders by their NFC form."""
    found = [os.sep if path.startswith(os.sep) else ""]
    for part in filter(None, path.split(os.sep)):
        found = [os.path.join(folder, name) for folder in found for name in _names_in(folder, part, names)]
    return found


def _names_in(folder: str, part: str, names: dict[str, dict[str, list[str]]]) -> list[str]:
    if os.path.lexists(os.path.join(folder, part)):
        return [part]
    if part.isascii():
        return []
    if folder not in names:
        names[folder] = defaultdict(list)
        with contextlib.suppress(OSError, ValueError):  # no folder; ValueError: a null byte
            for name in os.listdir(folder or "."):
                names[folder][unify(name)].append(name)
    return names[folder].get(unify(part), [])
