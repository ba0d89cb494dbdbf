"""A metric over the folds of a protocol, with its error bar."""

from __future__ import annotations

import statistics
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from walt_pl.evaluation.card import ErrorBar, ErrorKind
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol

PARTS = 4
"""Disjoint parts of the clips of a single fold, as many as MAGVIT has folds."""


@dataclass(frozen=True)
class _Side:
    """Rows of one side, in the order of its draws."""

    rows: Tensor
    kept: Tensor
    """False for a clip that could not be read, bool [n]."""

    def select(self, positions: Tensor) -> Tensor:
        """Return the rows of those of the draws that could be read."""
        return self.rows[positions[self.kept[positions]]]


_Sides = dict[bool, _Side]
_Rows = dict[bool, Tensor]


def measure_folds(
    metric: type[Metric],
    real_rows: Tensor | None,
    generated_rows: Tensor,
    protocol: EvaluationProtocol,
    seed: int,
    *,
    real_kept: Tensor | None = None,
    generated_kept: Tensor | None = None,
) -> tuple[float, ErrorBar]:
    """Return the mean of a metric over the folds of a protocol, and its error bar.

    A bootstrap is no error bar here: a resampled set has fewer unlike clips, which raises Frechet distances.
    Disjoint parts have fewer clips, too. So their spread alone is used, and the value is that of all clips.

    Args:
        metric: the metric. Each fold gets an object of its own.
        real_rows: rows of all real draws, float32 [n d], fold after fold; None for a metric without real clips.
        generated_rows: rows of all generated draws, float32 [n d], fold after fold.
        protocol: the number of folds, and of draws of a fold.
        seed: seed of each metric, and of the order in which parts are cut.
        real_kept: False where a real clip could not be read, bool [n]; its fold is smaller then. None keeps every clip.
        generated_kept: likewise for generated clips.

    Raises:
        ValueError: a side has too few clips, or rows that are nan or infinite.
    """
    sides = {False: _side(generated_rows, generated_kept)}
    if metric.real_side:
        if real_rows is None:
            raise ValueError(f"{metric.name}: compares with real clips, and there are none: name them with --real")
        sides[True] = _side(real_rows, real_kept)
    if protocol.folds == 1:
        value = _measure(metric, {real: side.select(torch.arange(len(side.rows))) for real, side in sides.items()}, seed)
        return value, _bar("disjoint folds", _measure_parts(metric, sides, seed))
    values = []
    for fold in range(protocol.folds):
        try:
            values.append(_measure(metric, _cut_fold(sides, protocol, fold), seed))
        except ValueError as error:
            raise ValueError(f"fold {fold + 1} of {protocol.folds}: {error}") from None
    return statistics.fmean(values), _bar("folds", values)


def _side(rows: Tensor, kept: Tensor | None) -> _Side:
    kept = torch.ones(len(rows), dtype=torch.bool) if kept is None else kept
    assert kept.shape == (len(rows),) and kept.dtype == torch.bool, "a side has one bool a row"
    return _Side(rows, kept)


def _cut_fold(sides: _Sides, protocol: EvaluationProtocol, fold: int) -> _Rows:
    """Return the rows of a fold: draws [fold * n, (fold + 1) * n) of each side."""
    rows = {}
    for real, side in sides.items():
        clips = protocol.real_clips if real else protocol.clips
        assert clips and len(side.rows) == clips * protocol.folds, f"{len(side.rows)} rows, not {protocol.folds} folds of {clips}"
        rows[real] = side.select(torch.arange(fold * clips, (fold + 1) * clips))
    return rows


def _measure_parts(metric: type[Metric], sides: _Sides, seed: int) -> list[float]:
    """Return the figures of four disjoint parts of all clips; of fewer, or of none, where a part is too small for the metric."""
    # Draws may be sorted by class, or go round the classes. So parts are cut from a random order.
    # It is one order for both sides where they have equally many draws: pairs stay in one part.
    orders = {real: torch.randperm(len(side.rows), generator=torch.Generator().manual_seed(seed)) for real, side in sides.items()}
    for count in range(PARTS, 1, -1):
        cuts = {real: order.tensor_split(count) for real, order in orders.items()}
        parts = [{real: side.select(cuts[real][part]) for real, side in sides.items()} for part in range(count)]
        if min(len(rows) for part in parts for rows in part.values()) < 2:
            continue
        try:
            with warnings.catch_warnings():
                # A part has few clips by intent. Whether the whole has too few is said already.
                warnings.simplefilter("ignore")
                return [_measure(metric, part, seed) for part in parts]
        except ValueError:
            # The whole set was measured, so this part has too few clips for the metric (10 parts of the inception score).
            continue
    return []


def _measure(metric: type[Metric], rows: _Rows, seed: int) -> float:
    measured = metric(seed)
    for real, some in rows.items():
        measured.update(some, real=real)
    return measured.compute()


def _bar(kind: ErrorKind, values: list[float]) -> ErrorBar:
    if len(values) < 2:
        return ErrorBar()
    return ErrorBar(kind, tuple(values), statistics.pstdev(values), statistics.stdev(values) / len(values) ** 0.5)
