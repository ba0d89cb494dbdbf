"""Classes and words that the training data had, as far as the artifacts of a run keep them."""

from collections.abc import Sequence
from dataclasses import dataclass

from walt_pl.data.class_labels import find_class
from walt_pl.plain_records import build_record
from walt_pl.runs.artifact import Artifact
from walt_pl.sampling.cascade import Cascade
from walt_pl.text.caption_words import WORDS, warn_of_unseen

CLASSES = "classes"
"""Section of model.yaml: number of each class of the training data -> its name, "" where the data has none."""


def known_classes(cascade: Cascade) -> dict[int, str] | None:
    """Return number and name of each class that every stage was trained on; None where no artifact keeps its classes."""
    found = [_read_classes(artifact) for artifact in cascade.artifacts.values() if artifact.config.get(CLASSES)]
    if not found:
        return None
    return {number: name for number, name in found[0].items() if all(number in classes for classes in found)}


@dataclass(frozen=True)
class _Classes:
    """Number and name of each class."""

    classes: dict[int, str]


def _read_classes(artifact: Artifact) -> dict[int, str]:
    """Return the classes in model.yaml of an artifact.

    Raises:
        UntrustedError: they are no names by number.
    """
    return build_record(_Classes, {CLASSES: artifact.section(CLASSES)}, f"{artifact.path}: model.yaml").classes


def class_number(cascade: Cascade, label: int | str) -> int:
    """Return the number of a class that was typed as a number or as a name.

    Args:
        cascade: the stages that run.
        label: number, or name as in the training data; upper and lower case, and the Unicode form, may differ.

    Raises:
        ValueError: the training data had no such class, or its names are not known.
    """
    known = known_classes(cascade)
    if isinstance(label, int) and known is None:
        return label
    if not isinstance(label, int) and not any(sampler.denoiser.config.num_classes for sampler in cascade.samplers.values()):
        raise ValueError(f'--label "{label}": this run does not make clips of a class: give --prompt or --prompts')
    return find_class(label, known or {}, "--label")


def class_title(cascade: Cascade, number: int) -> str:
    """Return the name of a class for the contact sheet, or "class NUMBER" where it has none."""
    return (known_classes(cascade) or {}).get(number) or f"class {number}"


def warn_of_unseen_words(cascade: Cascade, prompts: Sequence[str]) -> None:
    """Warn once of all words of the prompts that no training caption of the small text encoder had.

    Artifacts that keep no words, and pretrained encoders, which know more words than the captions, give no warning.
    """
    artifact = cascade.artifacts.get(cascade.base)
    if artifact is None or WORDS not in artifact.card["files"]:
        return
    warn_of_unseen(artifact.read(WORDS), prompts)
