"""Numbers of the classes that a source names, and the checks that they mean one thing in the whole index."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from walt_pl.data.index import MediaKey, class_names
from walt_pl.data.labels import NO_LABEL
from walt_pl.files import write_whole
from walt_pl.indexing.listing import SourceListing

_SHOWN = 3


class FirstLabels:
    """The first number and the first name among the labels of a source."""

    def __init__(self) -> None:
        self._found: dict[type, tuple[str, int | str]] = {}

    def add(self, label: int | str, place: str) -> None:
        """Note a label, and the place that messages name, such as "clips.csv:3"."""
        if label != NO_LABEL:
            self._found.setdefault(type(label), (place, label))

    def describe_mixture(self) -> str:
        """Return the first label that is not of the kind of those before it. Empty where all are numbers, or all are names."""
        if len(self._found) < 2:
            return ""
        (before, usual), (place, odd) = self._found.values()
        kinds = {int: "a number", str: "a name"}
        return f'{place}: label "{odd}" is {kinds[type(odd)]}, but "{usual}" ({before}) is {kinds[type(usual)]}'


@dataclass(frozen=True)
class ClassNumbers:
    """The number of each class that has a name: its line in NAME.classes.txt, from 0."""

    file: Path
    """NAME.classes.txt."""
    names: list[str]
    """Names by number, new ones at the end: no number ever changes."""
    new: int
    """Number of new names."""
    named: bool
    """True if the source names its classes. Then a label that is spelled as a number is a name, too."""
    notes: list[str]
    """Words about it for the person who makes the index."""

    def of(self, labels: Iterable[int | str]) -> list[int]:
        """Return the numbers of labels."""
        numbers = {name: number for number, name in enumerate(self.names)}
        return [label if isinstance(label, int) and (label == NO_LABEL or not self.named) else numbers[str(label)] for label in labels]

    def write(self) -> None:
        """Write NAME.classes.txt if there are new names."""
        if self.new:
            write_whole(self.file, "".join(f"{name}\n" for name in self.names).encode())


def number_classes(listing: SourceListing | None, old: pa.Table, listed: set[MediaKey], out: Path) -> ClassNumbers:
    """Return the numbers of the classes that a source names. Nothing is written.

    Args:
        listing: The listed source, or None.
        old: Rows of the index.
        listed: Places that the source lists; their old labels count no longer.
        out: The index.

    Raises:
        ValueError: The source has numbers and names, or new names would take the numbers of other classes of the index.
    """
    names, file = class_names(out), out.with_suffix(".classes.txt")
    if listing is None:
        return ClassNumbers(file, names, 0, False, [])
    labels = {item.label for item in listing.items} - {NO_LABEL}
    fresh = {label for label in labels if isinstance(label, str)}
    numbers = {label for label in labels if isinstance(label, int)}
    if not fresh:
        return ClassNumbers(file, names, 0, False, _describe_numbers(numbers, names, file))
    if not {str(number) for number in numbers} <= set(names):
        raise ValueError(
            f"{listing.mixture}. Write numbers in all places, or names in all. If such a number is the name of a class, write {file} with "
            "the name of each class in a line, and type the command again"
        )
    known = set(names)
    more = [name for name in dict.fromkeys([*listing.classes, *sorted(fresh)]) if name not in known]
    _check_old(old, listed, names, more, file)
    used = sorted(fresh | {str(number) for number in numbers})
    return ClassNumbers(file, [*names, *more], len(more), True, [f"{len(used):,} class names, file {file}: {_first(used)}"])


def _check_old(old: pa.Table, listed: set[MediaKey], names: list[str], more: list[str], file: Path) -> None:
    """Check that no row of the index has the number of a new name.

    Raises:
        ValueError: A row has. It is of a source with numbers.
    """
    if not more:
        return
    labels = np.asarray(old["label"])
    for row in np.flatnonzero(labels >= len(names)).tolist():
        place = MediaKey(*(old[name][row].as_py() for name in MediaKey._fields))
        if place not in listed:
            raise ValueError(
                f'the source names classes, such as "{more[0]}", but the index has classes by number: {labels[row]} of {place}. Write '
                f"{file} with the name of each class in a line, the first for number 0, and type the command again; or make another index "
                "(--out)"
            )


def _describe_numbers(numbers: set[int], names: list[str], file: Path) -> list[str]:
    """Return a note where a source has numbers, and an index names."""
    if not numbers or not names:
        return []
    beyond = sorted(number for number in numbers if number >= len(names))
    known = f'labels are numbers of the lines of {file}: 0 is "{names[0]}", {len(names) - 1} "{names[-1]}"'
    lacking = f"; without a line there: {len(beyond):,}, such as {beyond[0]}: add lines, or remove the file if it is of another source"
    return [known + (lacking if beyond else "")]


def _first(names: list[str]) -> str:
    shown = ", ".join(f'"{name[:40]}"' for name in names[:_SHOWN])
    return shown + (" ..." if len(names) > _SHOWN else "")
