"""Cards: a figure with everything that determines it, so that two figures are compared only where that makes sense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from walt_pl.metrics.metric import Better

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
    """Code revision, versions, machine, device, dtype, processes."""
    seconds: float = 0.0
    """Wall time of all starts."""
    date: str = ""
    """Time of the end, ISO 8601, UTC."""

    def to_plain(self) -> dict[str, Any]:
        """Return the card as plain values for JSON."""
        return {"format": 1, **asdict(self)}
