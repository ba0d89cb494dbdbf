"""Cards: a figure with everything that determines it, so that two figures are compared only where that makes sense."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from walt_pl.files import write_whole
from walt_pl.metrics.metric import Better
from walt_pl.plain_records import build_record, check_range, check_time, shown
from walt_pl.untrusted import UntrustedError, parse_json, read_bytes

FORMAT = 1
"""Version of a card."""
MAX_FILE_BYTES = 16 << 20
"""Bytes of a file of cards. A card has about 4 KB."""
MAX_CARDS = 1000
"""Cards of a file."""
MAX_PARTS = 10_000
"""Figures in an error bar."""
MAX_SECONDS = 3e10
"""Largest wall time: 950 years."""
CARD_COLUMNS = ("metric", "value", "error", "best", "preset", "clips", "real clips", "extractor")
"""Headings of a table of cards; `card_cells` returns a row of it."""

ErrorKind = Literal["folds", "disjoint folds", "none"]
"""Origin of an error bar: the folds of the protocol, disjoint parts of the clips of its one fold, or no error bar."""


@dataclass(frozen=True)
class ErrorBar:
    """Spread of a figure. Parts are disjoint: resampling one set would raise Frechet distances."""

    kind: ErrorKind = "none"
    values: tuple[float, ...] = ()
    """Figure of each fold, or of each part. A part has fewer clips, so its Frechet distance is higher than the card's value."""
    std: float | None = None
    """Population standard deviation of `values`, as papers print it."""
    standard_error: float | None = None
    """Uncertainty of the card's value: the sample standard deviation of `values`, divided by the root of their number."""

    def __post_init__(self) -> None:
        if len(self.values) > MAX_PARTS:
            raise ValueError(f"values: found {len(self.values):,}, wanted at most {MAX_PARTS:,}")
        for name in ("std", "standard_error"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} is {shown(value)}, wanted 0 or more")


@dataclass(frozen=True)
class MetricCard:
    """One figure and its origin."""

    metric: str
    value: float
    better: Better
    preset: str | None
    """Name of the published protocol; None where a value of it was changed, or clips are missing."""
    protocol: dict[str, Any]
    """Every value of the protocol (`EvaluationProtocol.to_plain`)."""
    settings: dict[str, Any]
    """Values of the metric itself (`Metric.settings`)."""
    extractor: dict[str, Any]
    """`Extractor.identity`."""
    real: dict[str, Any] | None
    """Facts of the source, `clips` (their number), `left_out` (number by reason); None for metrics without real clips."""
    generated: dict[str, Any]
    """As `real`; for a run also artifacts, guidance, solver, steps, seeds, EMA."""
    error: ErrorBar = field(default_factory=ErrorBar)
    program: dict[str, Any] = field(default_factory=dict)
    """Code revision, versions, machine, device and processes that computed the rows."""
    seconds: float = 0.0
    """Wall time of all starts."""
    date: str = ""
    """Time of the end, ISO 8601, UTC."""

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.metric) is None:
            raise ValueError(f"metric is {shown(self.metric)}, wanted a name such as fvd")
        check_range(self.seconds, "seconds", MAX_SECONDS)
        if self.date:
            check_time(self.date, "date")

    def to_plain(self) -> dict[str, Any]:
        """Return the card as plain values for JSON."""
        return {"format": FORMAT, **asdict(self)}


def card_cells(card: MetricCard) -> list[str]:
    """Return the row of a card in a table with the headings `CARD_COLUMNS`. Its texts may be a stranger's."""
    error, sha256 = card.error.standard_error, card.extractor.get("sha256")
    kind = str(card.extractor.get("kind", ""))
    return [
        card.metric,
        f"{card.value:.6g}",
        "" if error is None else f"± {error:.2g} ({card.error.kind})",
        {"min": "lowest", "max": "highest"}[card.better],
        card.preset or "changed protocol",
        str(card.generated.get("clips", "")),
        str((card.real or {}).get("clips", "")),
        f"{kind} {sha256[:12]}" if isinstance(sha256, str) else kind,
    ]


def write_cards(path: Path, cards: Sequence[MetricCard]) -> None:
    """Write cards as JSON, whole or not at all: an object for one card, a list for several.

    Args:
        path: the file. Its folder is made. An existing file is replaced only if it is a file of cards.
        cards: at least one.

    Raises:
        ValueError: there is another file in its place, or a card could not be read again (a figure is nan or infinite).
        OSError: the file cannot be written.
    """
    plain = [card.to_plain() for card in cards]
    text = json.dumps(plain[0] if len(plain) == 1 else plain, indent=2) + "\n"
    _parse(text, f"{path} is not written: the card")
    try:
        read_cards(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    except UntrustedError as error:
        raise ValueError(f"{path} exists and is no file of cards ({error}): move it away, or name another file") from None
    write_whole(path, text.encode())


def read_cards(path: Path) -> list[MetricCard]:
    """Read a file of cards, which a stranger may have written. Nothing that it names is opened.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedError: it is no plain file of limited size, or an entry of a card is missing, unknown, or has another type or range.
    """
    return _parse(read_bytes(path, MAX_FILE_BYTES), str(path))


def _parse(text: str | bytes, where: str) -> list[MetricCard]:
    """Return the cards of a JSON text.

    Raises:
        UntrustedError: it has none, too many, or one with a wrong entry.
    """
    plain = parse_json(text, where)
    cards = plain if isinstance(plain, list) else [plain]
    if not 1 <= len(cards) <= MAX_CARDS:
        raise UntrustedError(f"{where}: found {len(cards):,} cards, wanted 1 .. {MAX_CARDS:,}")
    return [_build(card, where if len(cards) == 1 else f"{where}: card {number}") for number, card in enumerate(cards, 1)]


def _build(plain: Any, where: str) -> MetricCard:
    if not isinstance(plain, dict) or "format" not in plain:
        raise UntrustedError(f"{where}: found {shown(plain)}, wanted the card of a metric (walt metrics --out FILE writes one)")
    if plain["format"] != FORMAT or type(plain["format"]) is not int:
        raise UntrustedError(f"{where}: format version {shown(plain['format'])} is unknown here (this program reads {FORMAT})")
    return build_record(MetricCard, {name: value for name, value in plain.items() if name != "format"}, where)
