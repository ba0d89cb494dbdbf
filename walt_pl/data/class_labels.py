"""Labels of an index against the classes of a model, in words."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from walt_pl.data.batch import Kind
from walt_pl.data.index import IndexEntries
from walt_pl.data.selection import OTHER_CLASS, UNLABELLED, Selection
from walt_pl.plain_text import unify

_SHOWN = 3


def describe_labels(
    entries: Mapping[Kind, IndexEntries], selections: Mapping[Kind, Selection], num_classes: int | None, names: Sequence[str]
) -> list[str]:
    """Return a line for each fact of the labels that the person who trains a class-conditional model should know.

    Args:
        entries: Clips and images of a split.
        selections: Their selections.
        num_classes: Number of the model's classes; None for a model without classes, of which there is nothing to say.
        names: Names of the classes of the index.
    """
    if num_classes is None:
        return []
    used = [entries[kind].column("label")[selection.positions()] for kind, selection in selections.items()]
    count = len(np.unique(np.concatenate(used))) if used else 0
    lines = [f"  {count:,} of the {num_classes:,} classes (model.denoiser.num_classes) have clips or images"]
    if not count:
        lines[0] += ": index a source with labels (docs/DATA.md), or train without classes (model.denoiser.num_classes null)"
    if len(names) > num_classes:
        lines.append(
            f"  the index names {len(names):,} classes, and model.denoiser.num_classes is {num_classes:,}: set it to {len(names)}, or "
            f'those from number {num_classes} ("{names[num_classes]}") on are not trained'
        )
    for reason, told in ((UNLABELLED, "no label"), (OTHER_CLASS, f"a label outside of 0 to {num_classes - 1}")):
        if first := _list_first(entries, selections, reason):
            lines.append(f"  {told}: {first}")
    return lines


def find_class(label: int | str, classes: Mapping[int, str], where: str) -> int:
    """Return the number of a class that a person typed as a number or as a name.

    Args:
        label: number, or name as in the training data; upper and lower case, and the Unicode form, may differ.
        classes: number -> name of each class, "" where it has none.
        where: option that it was typed for, for the messages.

    Raises:
        ValueError: there is no such class, or the classes have no names.
    """
    if isinstance(label, int):
        if label not in classes:
            raise ValueError(f"{where} {label}: the training data had no clip of this class; there are: {_list_classes(classes)}")
        return label
    names = {name: number for number, name in classes.items() if name}
    if not names:
        raise ValueError(f'{where} "{label}": this run keeps no names of classes; give the number of the class')
    folded = {unify(name).casefold(): number for name, number in names.items()}
    number = names.get(label, folded.get(unify(label).casefold()))
    if number is None:
        near = difflib.get_close_matches(label, names, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}?" if near else f"there are: {_list_classes(classes)}"
        raise ValueError(f'{where} "{label}": the training data had no class of this name; {meant}')
    return number


def find_classes(prompts: Sequence[str], classes: Mapping[int, str], where: str) -> list[int]:
    """Return the classes of lines that are names, or numbers where no class has that name; see `find_class`."""
    names = set(classes.values())
    return [find_class(int(one) if one.isdecimal() and one not in names else one, classes, where) for one in prompts]


def _list_classes(classes: Mapping[int, str], most: int = 20) -> str:
    """Return the first classes with their names, and the number of the others."""
    shown = [f"{number} ({classes[number]})" if classes[number] else f"{number}" for number in sorted(classes)[:most]]
    return ", ".join(shown) + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _list_first(entries: Mapping[Kind, IndexEntries], selections: Mapping[Kind, Selection], reason: int) -> str:
    """Return the first entries that are not used for a reason, with their labels."""
    shown, count = list[str](), 0
    for kind, selection in selections.items():
        positions = np.flatnonzero(selection.reason == reason)
        first = positions[: _SHOWN - len(shown)]
        count += len(positions)
        labels = entries[kind].column("label")[first].tolist()
        shown += [f"{place} ({label})" for place, label in zip(entries[kind].places(first), labels, strict=True)]
    return ", ".join(shown) + (f" and {count - len(shown):,} more" if count > len(shown) else "")
