"""Compare two figures by their cards, or refuse where their fields differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from walt_pl.evaluation.card import MetricCard, read_cards
from walt_pl.evaluation.places import PLACES
from walt_pl.plain_records import shown

STANDARD_ERRORS = 2.0
"""Two figures are told apart from a difference of this many standard errors on."""
SEEDS = ("protocol.seed", "settings.seed")
"""The seed draws other clips of the same videos, and another order of rows. It moves a figure by chance alone, and the error bar covers
that. Two cards that differ in nothing else are two samples of one quantity, so a seed is told and not refused. For equal seeds the real
clips are the same, and the uncertainty of the difference is rather too large."""
_MISSING: Any = object()
"""Stands for an entry that only the other card has."""


@dataclass(frozen=True)
class FieldDifference:
    """A field of two cards with unlike values."""

    field: str
    """Its path in the card, such as protocol.clips."""
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """Two cards of one metric."""

    a: MetricCard
    b: MetricCard
    obstacles: tuple[FieldDifference, ...]
    """Differences with which the two figures must not be compared."""
    notes: tuple[FieldDifference, ...]
    """Other differences: of the generated clips, of the program, of seeds and of paths."""

    @property
    def difference(self) -> float:
        """Value of a minus value of b."""
        return self.a.value - self.b.value

    @property
    def uncertainty(self) -> float | None:
        """Standard error of the difference; None if a card has no error bar."""
        a, b = self.a.error.standard_error, self.b.error.standard_error
        return None if a is None or b is None else math.hypot(a, b)

    def verdict(self) -> str:
        """Return in words which figure is better, or why that is not known."""
        if self.obstacles:
            return "not comparable"
        if self.difference == 0:
            return "equal"
        better = "a" if (self.difference < 0) == (self.a.better == "min") else "b"
        if self.uncertainty is None:
            without = " and ".join(name for name, card in (("a", self.a), ("b", self.b)) if card.error.standard_error is None)
            return f"{better} by the figures; whether by chance is not known: no error bar in {without}"
        if abs(self.difference) < STANDARD_ERRORS * self.uncertainty:
            return f"cannot be told apart (below {STANDARD_ERRORS:g} standard errors)"
        return f"{better} is better"


def compare(a: Path, b: Path, force: bool = False) -> Group:
    """Compare the figures of two files of cards, metric by metric.

    Args:
        a: a file of cards.
        b: a file of cards.
        force: print figures that must not be compared, and beside them the fields in which they differ.

    Returns:
        Tables for the terminal: figures, fields that forbid the comparison (with `force`), other differences.

    Raises:
        ValueError: fields differ so that figures must not be compared, and `force` is false; or no metric is in both files.
    """
    cards = read_cards(a), read_cards(b)
    found = pair_cards(*cards)
    if not found:
        metrics = [", ".join(dict.fromkeys(card.metric for card in side)) for side in cards]
        raise ValueError(f"compare: no metric is in both files: {a} has {metrics[0]}, {b} has {metrics[1]}")
    obstacles = [(one.a.metric, field) for one in found for field in one.obstacles]
    if obstacles and not force:
        lines = [f"  {metric}: {field.field} is {field.a} in a, {field.b} in b" for metric, field in obstacles]
        raise ValueError("\n".join([f"{a} (a) and {b} (b) must not be compared:", *lines, "With --force they are printed all the same."]))
    parts = [_figures(found)]
    if obstacles:
        parts.append(_fields("fields that forbid a comparison", obstacles))
    if notes := [(one.a.metric, field) for one in found for field in one.notes]:
        parts.append(_fields("other differences", notes))
    left = [f"{path} alone has {', '.join(names)}" for path, names in zip((a, b), _unpaired(cards, found), strict=True) if names]
    return Group(Text(f"a: {a}"), Text(f"b: {b}"), *parts, *map(Text, left))


def pair_cards(a: Sequence[MetricCard], b: Sequence[MetricCard]) -> list[Comparison]:
    """Return the cards of two files in pairs of one metric. Of several cards of a metric, those go together that differ least.

    Two single cards of unlike metrics are a pair, too: their metric is the field that differs.
    """
    if len(a) == len(b) == 1:
        return [compare_cards(a[0], b[0])]
    found, left = [], list(b)
    for card in a:
        options = [compare_cards(card, other) for other in left if other.metric == card.metric]
        if options:
            nearest = min(options, key=lambda one: len(one.obstacles))
            left = [other for other in left if other is not nearest.b]
            found.append(nearest)
    return found


def compare_cards(a: MetricCard, b: MetricCard) -> Comparison:
    """Return the differences of two cards.

    Metric, preset, every value of protocol and settings, the extractor, the real side and the number of generated clips forbid a
    comparison. An entry that only one card has differs, too, so that a new value of a protocol is never overlooked.
    """
    sides = [_determining(card) for card in (a, b)]
    notes = [{f"generated.{name}": value for name, value in card.generated.items() if name != "clips"} for card in (a, b)]
    told = [{**note, "program": card.program} for note, card in zip(notes, (a, b), strict=True)]
    differing = list(_differences(*sides))
    is_told = [field.field in SEEDS or field.field.rpartition(".")[2] in PLACES for field in differing]
    return Comparison(
        a,
        b,
        tuple(field for field, told_only in zip(differing, is_told, strict=True) if not told_only),
        (*(field for field, told_only in zip(differing, is_told, strict=True) if told_only), *_differences(*told)),
    )


def _determining(card: MetricCard) -> dict[str, Any]:
    """Return the fields of a card that must be equal where its figure is compared."""
    plain = asdict(card)
    names = ("metric", "better", "preset", "protocol", "settings", "extractor", "real")
    return {**{name: plain[name] for name in names}, "generated.clips": card.generated.get("clips")}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterable[FieldDifference]:
    """Yield the fields with unlike values, by their paths."""
    for name in dict.fromkeys((*a, *b)):
        one, other = a.get(name, _MISSING), b.get(name, _MISSING)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            for field in _differences(one, other):
                yield FieldDifference(f"{name}.{field.field}", field.a, field.b)
        elif one != other or isinstance(one, bool) != isinstance(other, bool):
            yield FieldDifference(name, _show(one), _show(other))


def _show(value: Any) -> str:
    return "missing" if value is _MISSING else shown(value)


def _figures(found: Sequence[Comparison]) -> Table:
    table = Table("metric", "a", "b", "a - b", "better")
    for one in found:
        name = one.a.metric if one.a.metric == one.b.metric else f"{one.a.metric}, {one.b.metric}"
        difference = f"{one.difference:+.6g} {_error(one.uncertainty)}"
        direction = {"min": "lower", "max": "higher"}[one.a.better]
        table.add_row(Text(name), _value(one.a), _value(one.b), difference, f"{one.verdict()} ({direction} is better)")
    return table


def _value(card: MetricCard) -> str:
    return f"{card.value:.6g} {_error(card.error.standard_error)}"


def _error(error: float | None) -> str:
    return "(no error bar)" if error is None else f"± {error:.2g}"


def _fields(title: str, fields: Sequence[tuple[str, FieldDifference]]) -> Table:
    table = Table("metric", "field", "a", "b", title=title, title_justify="left")
    for metric, field in fields:
        table.add_row(*map(Text, (metric, field.field, field.a, field.b)))
    return table


def _unpaired(cards: Sequence[Sequence[MetricCard]], found: Sequence[Comparison]) -> list[list[str]]:
    """Return the metrics of each file whose cards have no counterpart."""
    used = {id(card) for one in found for card in (one.a, one.b)}
    return [[card.metric for card in side if id(card) not in used] for side in cards]
