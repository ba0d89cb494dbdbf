"""Numbers of the classes that a source names, and the checks that they mean one thing in the whole index."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from walt_pl.data.index import MediaKey, class_names
from walt_pl.data.labels import NO_LABEL, read_label
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
    of_digits: dict[int, int]
    """Number of the class for each label of the source that is the name of one, although it is spelled as a number."""
    notes: list[str]
    """Words about it for the person who makes the index."""

    def of(self, labels: Iterable[int | str]) -> list[int]:
        """Return the numbers of labels."""
        numbers = {name: number for number, name in enumerate(self.names)}
        return [self.of_digits.get(label, label) if isinstance(label, int) else numbers[label] for label in labels]

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
        ValueError: The source has numbers and names, a label may be a number or a name, or new names would take the numbers of other
            classes of the index.
    """
    names, file = class_names(out), out.with_suffix(".classes.txt")
    if listing is None:
        return ClassNumbers(file, names, 0, {}, [])
    labels = {item.label for item in listing.items} - {NO_LABEL}
    fresh = {label for label in labels if isinstance(label, str)}
    numbers = {label for label in labels if isinstance(label, int)}
    of_digits = _find_names(listing, numbers, bool(fresh), names, file)
    if not fresh and not of_digits:
        return ClassNumbers(file, names, 0, {}, _describe_numbers(numbers, names, file))
    known = set(names)
    more = [name for name in dict.fromkeys([*listing.classes, *sorted(fresh)]) if name not in known]
    _check_old(old, listed, names, more, file)
    used = sorted(fresh | {names[number] for number in of_digits.values()})
    return ClassNumbers(file, [*names, *more], len(more), of_digits, [f"{len(used):,} class names, file {file}: {_first(used)}"])


def _find_names(listing: SourceListing, numbers: set[int], named: bool, names: list[str], file: Path) -> dict[int, int]:
    """Return the number of the class for each number that is the name of one. Empty where all are numbers of classes.

    A name such as "007" is the number 7 in any spelling, as labels are read.

    Args:
        listing: The listed source.
        numbers: Its labels that are numbers.
        named: Whether its other labels are names.
        names: Names of the classes that the index has.
        file: NAME.classes.txt.

    Raises:
        ValueError: Some are names and others are not, or one may be several classes.
    """
    lines = _read_lines(names)
    if not named and all(lines.get(number, [number]) == [number] for number in numbers):
        return {}
    unnamed = sorted(numbers - set(lines))
    if named and unnamed:
        raise ValueError(
            f"{listing.mixture}. Write numbers in all places, or names in all. If such a number is the name of a class, write {file} with "
            "the name of each class in a line, and type the command again"
        )
    if unnamed:
        name = min(number for number in numbers if lines.get(number, [number]) != [number])
        raise ValueError(
            f"{_place(listing, name)}: label {name} is the name of a class in line {lines[name][0] + 1} of {file}, and label {unnamed[0]} "
            f"({_place(listing, unnamed[0])}) is none. Write names in all places, or in all the numbers of the lines, from 0"
        )
    all_names = named or any(number >= len(names) for number in numbers)
    for number in sorted(numbers):
        classes = lines[number] if all_names else sorted({number, *lines[number]})
        if len(classes) > 1:
            found = " or ".join(f'{one} ("{names[one][:40]}")' for one in classes[:_SHOWN])
            raise ValueError(
                f"{_place(listing, number)}: label {number} may be the class {found} of {file}. Give the classes there that are called by "
                f'a number other names, such as "class {number}", also in the source, and type the command again'
            )
    return {number: lines[number][0] for number in numbers}


def _read_lines(names: list[str]) -> dict[int, list[int]]:
    """Return the numbers of the classes whose names are spelled as a number, by that number."""
    lines: dict[int, list[int]] = {}
    for line, name in enumerate(names):
        with contextlib.suppress(ValueError):  # a name such as 3.5, which no label has
            if isinstance(number := read_label(name), int) and number != NO_LABEL:
                lines.setdefault(number, []).append(line)
    return lines


def _place(listing: SourceListing, label: int) -> str:
    return next(item.file for item in listing.items if item.label == label)


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
    if not beyond:
        return [known]
    lacking = f"without a line there: {len(beyond):,}, such as {beyond[0]}: add lines, or remove the file if it is of another source"
    return [f"{known}; {lacking}"]


def _first(names: list[str]) -> str:
    shown = ", ".join(f'"{name[:40]}"' for name in names[:_SHOWN])
    return shown + (" ..." if len(names) > _SHOWN else "")
