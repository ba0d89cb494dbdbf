"""The figures of the embedded set's table as cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from walt_pl.evaluation.card import ErrorBar, MetricCard
from walt_pl.evaluation.error_bar import measure_folds
from walt_pl.evaluation.run_source import artifact_facts, compute_facts
from walt_pl.metrics.mean import MeanOfClips
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.sampling.cascade import Cascade, SamplingConfig
from walt_pl.shapes.clip_mean import ClipMean
from walt_pl.shapes.scorer_metric import ShapesExtractor

PREFIX = "shapes_"
"""Beginning of the names of these figures: they are not those of another metric, such as psnr."""


def sampling_facts(run: str, cascade: Cascade, sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    """Return everything that determines the samples of a table, for its cards."""
    return {
        "kind": "run",
        "run": run,
        "artifacts": artifact_facts(cascade),
        "solver": "ddim",
        "eta": sampling.eta,
        "steps": {stage: sampling.steps_of(stage) for stage in cascade.stages},
        "guidance": {stage: asdict(cascade.guidance(stage, sampling)) for stage in cascade.stages},
        "seed": seed,
        "seeds": "seed + number of the sample, from 0 in each figure; pairs that were never seen from seed + number of the captions",
        **compute_facts(cascade),
    }


def make_cards(
    figures: Mapping[str, float],
    index: Mapping[str, str],
    generated: Mapping[str, Any],
    program: Mapping[str, Any],
    seconds: float,
) -> list[MetricCard]:
    """Return a card for each figure of a stage that is a mean over clips.

    A share of high frequencies has no card: neither the lowest nor the highest is the best, but 1.

    Args:
        figures: of the stage, from the table.
        index: path and sha256 of the index.
        generated: facts of the samples or reconstructions.
        program: facts of program and machine.
        seconds: wall time of the whole table.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    cards = []
    for figure, value in figures.items():
        if not isinstance(value, ClipMean):
            continue
        clips = len(value.clips)
        split = "unseen" if figure == "unseen_pairs" else "val"
        cards.append(
            MetricCard(
                metric=figure if figure.startswith(PREFIX) else f"{PREFIX}{figure}",
                value=float(value),
                better="min" if figure.removeprefix(PREFIX).startswith("steadiness") else "max",
                preset=None,
                protocol={"table": "walt evaluate", "split": split, "clips": clips, "index": dict(index)},
                settings={},
                extractor=ShapesExtractor().identity(),
                real=None,
                generated={**generated, "clips": clips, "left_out": {}},
                error=_measure_error(value),
                program=dict(program),
                seconds=seconds,
                date=date,
            )
        )
    return cards


def _measure_error(figure: ClipMean) -> ErrorBar:
    """Return the error bar of a figure, from disjoint parts of its clips; none where it cannot be written (nan or infinite)."""
    if not isfinite(figure):
        return ErrorBar()
    return measure_folds(MeanOfClips, None, figure.clips.float()[:, None], EvaluationProtocol(), seed=0)[1]
