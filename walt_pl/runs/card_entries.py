"""The entries of a card with their types and ranges. A card may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from walt_pl.plain_records import build_record, check_plain, check_range, check_sha256, check_time, shown
from walt_pl.runs.stage_names import kind_of

WEIGHTS, CONFIG, TRAIN, CARD = "model.safetensors", "model.yaml", "train.yaml", "card.json"
EXTRA = ("tokenizer.model", "words.txt")
"""Further files that an artifact may have."""
OWN = (CARD, WEIGHTS, CONFIG, TRAIN, *EXTRA)
"""All files that an artifact may have, beside the model card."""
MODEL_CARD = "README.md"
"""The artifact described for people. It has no hash: a person may edit it, and no program reads a value from it."""

MAX_CARD_BYTES = 1 << 20
"""Bytes of card.json. A card has about 3 KB."""
MAX_SMALL_FILE_BYTES = 256 << 20
"""Bytes of a file of an artifact that is no weights. The largest is words.txt, with the words of all captions."""
MAX_WEIGHTS_BYTES = 1 << 44
"""Bytes of the weights: 16 TiB."""
MAX_CHANNELS = 4096
"""Channels of the latent statistics."""
MAX_STATISTIC = 1e30
"""Largest mean or deviation of latents: float32 ends at 3e38."""
MAX_COUNT = 2**53
"""Largest count of steps, epochs and samples."""
MAX_TRAINING_SECONDS = 3e10
"""Largest wall time of a training: 950 years."""


@dataclass(frozen=True)
class CardFile:
    """A file of an artifact."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        check_range(self.bytes, "bytes", MAX_WEIGHTS_BYTES)


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel of an autoencoder."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not 1 <= len(self.mean) <= MAX_CHANNELS:
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations, wanted as many, 1 .. {MAX_CHANNELS:,}")
        for value in self.mean:
            check_range(value, "mean", MAX_STATISTIC, -MAX_STATISTIC)
        for value in self.std:
            check_range(value, "std", MAX_STATISTIC)


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of the training that are for people alone."""

    command: str = ""
    """Command of the last start as it was typed; empty if it is not known. Absolute folders are left out."""
    starts: int = 1
    """Starts of the training that left a checkpoint, and the last one."""
    machine: str = ""
    """Processor or GPU, and the number of processes."""
    seconds: float | None = None
    """Wall time of the last start."""
    from_step: int = 0
    """Step from which the last start went on."""

    def __post_init__(self) -> None:
        check_range(self.seconds, "seconds", MAX_TRAINING_SECONDS)
        check_range(self.starts, "starts", MAX_COUNT, 1)
        check_range(self.from_step, "from_step", MAX_COUNT)


@dataclass(frozen=True)
class ConversionFacts:
    """Facts of the rounding of an artifact's weights that are for people alone."""

    command: str
    """Command that rounded them. Absolute folders are left out."""
    code: str | None = None
    """Commit of the program that rounded them; None outside of git."""


@dataclass(frozen=True)
class CardEntries:
    """The entries of a card that this program reads."""

    format: int
    kind: Literal["vae", "base", "super_resolution"]
    sha256: str
    """Hash of the weights."""
    files: dict[str, CardFile]
    parents: dict[str, str] = field(default_factory=dict)
    latents: LatentStatistics | None = None
    steps: int = 0
    epochs: int | None = None
    samples: int = 0
    index: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: TrainingFacts = field(default_factory=TrainingFacts)
    converted_from: str | None = None
    """Hash of the weights in float32 that these were rounded from; None for those that a training has left."""
    conversion: ConversionFacts | None = None
    """Facts of the rounding; None for weights that a training has left, or that an older version rounded."""
    code: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    created: str = "1970-01-01T00:00:00+00:00"

    def __post_init__(self) -> None:
        outside = sorted(set(self.files) - set(OWN) | ({CARD} & set(self.files)))
        if outside:
            listed = ", ".join(shown(name) for name in outside[:3])
            raise ValueError(f"lists {listed}, wanted names of files of an artifact beside it ({', '.join(OWN[1:])})")
        missing = [name for name in (WEIGHTS, CONFIG, TRAIN) if name not in self.files]
        if missing:
            raise ValueError(f"does not list {', '.join(missing)}")
        for name, file in self.files.items():
            if name != WEIGHTS:
                check_range(file.bytes, f"bytes of {name}", MAX_SMALL_FILE_BYTES)
        if self.sha256 != self.files[WEIGHTS].sha256:
            raise ValueError(f"sha256 is not that of {WEIGHTS}")
        for parent, sha256 in self.parents.items():
            kind_of(parent)
            check_sha256(sha256, f"parents: {parent}")
        for name in ("steps", "epochs", "samples"):
            check_range(getattr(self, name), name, MAX_COUNT)
        if self.converted_from is not None:
            check_sha256(self.converted_from, "converted_from")
        check_time(self.created, "created")


def check_card(card: Mapping[str, Any], where: str) -> None:
    """Check the entries of a card. Further entries, of another version of the program, are plain values.

    Raises:
        UntrustedError: an entry is missing, or has another type or range.
    """
    known = {entry.name for entry in fields(CardEntries)}
    build_record(CardEntries, {name: value for name, value in card.items() if name in known}, where)
    check_plain({name: value for name, value in card.items() if name not in known}, where)
