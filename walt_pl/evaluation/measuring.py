"""Measure sets of clips: rows of both sides, metrics over folds, and a card for each metric."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from walt_pl.evaluation.card import MetricCard
from walt_pl.evaluation.error_bar import measure_folds
from walt_pl.evaluation.row_store import REASONS, StoredRows
from walt_pl.evaluation.rows import MeasureOptions, Side, compute_rows
from walt_pl.evaluation.source import ClipSource, Drawn
from walt_pl.metrics.extractor import Extractor
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol

UNREADABLE_PAIRS = "pairs of which a clip is unreadable"
"""Reason in a card for clips without a partner."""


@dataclass(frozen=True)
class _Measured:
    """Rows of both sides from one extractor."""

    extractor: Extractor
    real: StoredRows | None
    generated: StoredRows


def measure(
    metrics: Sequence[type[Metric]],
    real: ClipSource | None,
    generated: ClipSource,
    real_draws: Drawn | None,
    generated_draws: Drawn,
    protocol: EvaluationProtocol,
    preset: str | None,
    extractors: Sequence[Extractor],
    options: MeasureOptions,
) -> list[MetricCard]:
    """Return a card for each metric. A measurement that was stopped goes on where it was.

    Args:
        metrics: metrics to compute.
        real: source of the real clips, or of the originals of pairs; None for metrics that need none.
        generated: source of the generated clips.
        real_draws: clips of the real source; None without one.
        generated_draws: clips of the generated source.
        protocol: values of the protocol.
        preset: name of the protocol, if it is a published one without changes.
        extractors: extractors, of which exactly one gives the rows of each metric.
        options: places, size of a block, processes.

    Raises:
        ValueError: a side is missing, no clip of it can be read, there are too few for a metric, or pairs are not equally many.
        OSError: rows cannot be written.
        ConnectionError: another process has ended.
    """
    by_rows = {name: extractor for extractor in extractors for name in extractor.gives}
    originals = Side("real", real, real_draws) if real is not None and real_draws is not None else None
    made = Side("generated", generated, generated_draws, originals)
    _check_sides(metrics, by_rows, made, protocol)
    of_real = {metric.needs: by_rows[metric.needs] for metric in metrics if metric.real_side}
    of_generated = {metric.needs: by_rows[metric.needs] for metric in metrics}
    rows: dict[tuple[str, str], StoredRows] = {}
    for side, by_name, root in ((originals, of_real, options.cache), (made, of_generated, options.work)):
        used = list({id(extractor): extractor for extractor in by_name.values()}.values())
        if side is not None and used:
            computed = compute_rows(side, used, protocol, root, options)
            rows |= {(side.name, name): one for extractor, one in zip(used, computed, strict=True) for name in extractor.gives}
    if protocol.paired:
        rows = _keep_whole_pairs(rows)
    return [
        _fill_card(
            metric,
            _Measured(by_rows[metric.needs], rows.get(("real", metric.needs)), rows["generated", metric.needs]),
            made,
            protocol,
            preset,
        )
        for metric in metrics
    ]


def _check_sides(metrics: Sequence[type[Metric]], by_rows: dict[str, Extractor], generated: Side, protocol: EvaluationProtocol) -> None:
    """Check before any clip is read that every metric has its sides.

    Raises:
        ValueError: one has not.
    """
    originals = generated.originals
    for metric in metrics:
        if metric.real_side and originals is None:
            raise ValueError(f"{metric.name} compares with real clips, and there are none: name them with --real")
    pairs = [metric.name for metric in metrics if by_rows[metric.needs].of_pairs] or (["the protocol"] if protocol.paired else [])
    if pairs and originals is not None and len(originals.drawn.draws) != len(generated.drawn.draws):
        raise ValueError(
            f"{pairs[0]} compares pairs, but there are {len(generated.drawn.draws):,} generated clips and "
            f"{len(originals.drawn.draws):,} real ones: make as many of both, or use fewer with --clips"
        )


def _keep_whole_pairs(rows: Mapping[tuple[str, str], StoredRows]) -> dict[tuple[str, str], StoredRows]:
    """Return rows of which a position counts only where all of them have it: all metrics then measure the same pairs.

    Raises:
        ValueError: no pair is left.
    """
    kept = torch.stack([one.kept for one in rows.values()]).all(dim=0)
    failures = sorted({failure for one in rows.values() for failure in one.reasons.items()})
    if not kept.any():
        raise ValueError(f"there is no pair of which both clips can be read ({'; '.join(reason for _, reason in failures[:REASONS])})")
    reasons: dict[int, str] = {}
    for position, reason in failures:
        reasons[position] = f"{reasons[position]}; {reason}" if position in reasons else reason
    return {name: replace(one, kept=kept, reasons=reasons) for name, one in rows.items()}


def _fill_card(
    metric: type[Metric],
    measured: _Measured,
    generated: Side,
    protocol: EvaluationProtocol,
    preset: str | None,
) -> MetricCard:
    """Compute a metric of the rows of both sides, fold by fold, and return its card.

    Raises:
        ValueError: there are too few rows.
    """
    started = time.perf_counter()
    real, made = measured.real, measured.generated
    value, error = measure_folds(
        metric,
        real.rows[metric.needs] if real else None,
        made.rows[metric.needs],
        protocol,
        protocol.seed,
        real_kept=real.kept if real else None,
        generated_kept=made.kept,
    )
    originals = generated.originals if real is not None or measured.extractor.of_pairs else None
    pairs = protocol.paired or measured.extractor.of_pairs
    # The real clips of pairs have no rows of their own: those of the pairs stand for them.
    used = {"real": real or made, "generated": made}
    wanted = {"generated": protocol.clips * protocol.folds, "real": protocol.real_clips and protocol.real_clips * protocol.folds}
    sides = [side for side in (originals, generated) if side is not None]
    whole = all(bool(used[side.name].kept.all()) and wanted[side.name] in (None, len(side.drawn.draws)) for side in sides)
    return MetricCard(
        metric=metric.name,
        value=value,
        better=metric.better,
        preset=preset if whole else None,
        protocol=protocol.to_plain(),
        settings=metric(protocol.seed).settings(),
        extractor=measured.extractor.identity(),
        real=_describe_side(originals, used["real"], pairs) if originals else None,
        generated=_describe_side(generated, made, pairs),
        error=error,
        program=made.program,
        seconds=round(sum(rows.seconds for rows in (real, made) if rows) + time.perf_counter() - started, 3),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _describe_side(side: Side, stored: StoredRows, pairs: bool) -> dict[str, Any]:
    """Return the facts of a side for a card: those of its source, the clips that were used, and those left out by reason.

    Rows of pairs do not say of which clip the file failed. The generated side counts such pairs, once for both; the reasons name the files.
    """
    unreadable = int((~stored.kept).sum())
    facts = {**side.source.facts(), "clips": int(stored.kept.sum()), "left_out": dict(side.drawn.left_out)}
    if unreadable and not (pairs and side.name == "real"):
        facts["left_out"][UNREADABLE_PAIRS if pairs else "unreadable"] = unreadable
        facts["unreadable"] = [stored.reasons[position] for position in sorted(stored.reasons)][:REASONS]
    return facts
