"""Labels of an index against the classes of a model, in words."""

from collections.abc import Mapping, Sequence

import numpy as np

from walt_pl.data.batch import Kind
from walt_pl.data.index import IndexEntries
from walt_pl.data.selection import OTHER_CLASS, UNLABELLED, Selection

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
