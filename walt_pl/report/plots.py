"""Draw the page's plots with matplotlib as SVG. Lines differ in colour, dashes and marker, so that they can be told apart in grey."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from walt_pl.report.blocks import Plot, shorten
from walt_pl.report.training_logs import Series
from walt_pl.runs.status import StatusRow

MOST_POINTS = 500
"""Points of a curve that are drawn."""
MARKERS = 6
"""Markers along a curve."""
WIDTH, HEIGHT = 4.2, 2.7
"""Inches of a plot. 4.2 inches are 403 pixels: on a page of 400 pixels the text keeps nine tenths of its size."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555", "#E69F00")
"""Colours of Okabe and Ito (2008), which people with any colour vision can tell apart."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 1)))
SHAPES = ("o", "s", "^", "D", "v", "x")
STATES = {"done": "-", "stale": "--", "running": "-.", "stopped": "-.", "missing": ":", "not started": ":"}
"""Line of a stage's box, by its state."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "walt",
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    x: Any
    y: Any


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """Return at most `most` points of a curve: first and last, and the least and the greatest value of equal parts between them.

    So a spike of one step stays.
    """
    count = len(series.steps)
    if count <= most:
        return series
    kept = {0, count - 1}
    for part in np.array_split(np.arange(1, count - 1), (most - 2) // 2):
        values = series.values[part]
        kept |= {int(part[np.argmin(values)]), int(part[np.argmax(values)])}
    places = np.array(sorted(kept))
    return Series(series.steps[places], series.values[places])


def draw_lines(title: str, lines: Sequence[Line], x_label: str, y_label: str, logarithmic: bool = False) -> Plot:
    """Draw lines in one plot. A logarithmic scale becomes linear where a value is not positive."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT + 0.16 * ((len(lines) - 1) // 2)), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
                marker=SHAPES[number % len(SHAPES)],
                markevery=max(1, len(line.x) // MARKERS),
                label=shorten(line.name, 40),
            )
        if logarithmic and all(np.min(line.y) > 0 for line in lines):
            _set_logarithmic(axes, min(np.min(line.y) for line in lines), max(np.max(line.y) for line in lines))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return Plot(title, f"{title}, against {x_label}. {' '.join(_describe(line, x_label) for line in lines)}", _svg(figure))


def _set_logarithmic(axes: Any, least: float, greatest: float) -> None:
    """Set a logarithmic scale with plain numbers: matplotlib's own powers of ten are formulas, and those are off."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if greatest > 30 * least else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _describe(line: Line, x_label: str) -> str:
    """Return first and last value of a line in words, and its extremes."""
    first, last = float(line.y[0]), float(line.y[-1])
    if len(line.x) == 1:
        return f"{line.name}: {first:.4g} at {x_label} {line.x[0]}."
    extremes = f"least {np.min(line.y):.4g}, greatest {np.max(line.y):.4g}"
    return f"{line.name}: {first:.4g} at {x_label} {line.x[0]}, {last:.4g} at {x_label} {line.x[-1]}, {extremes}."


def draw_chain(rows: Sequence[StatusRow]) -> Plot:
    """Draw the stages as boxes in a column, with state and hash, and an arrow from each parent to its child."""
    place = {row.stage: -number for number, row in enumerate(rows)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.25 + 0.72 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_xlim(0, 10)
        axes.set_ylim(-len(rows) + 0.45, 0.55)
        for row in rows:
            y = place[row.stage]
            box = FancyBboxPatch(
                (0.1, y - 0.3), 6.4, 0.6, boxstyle="round,pad=0.02", fill=False, linestyle=STATES[row.state], linewidth=1.4
            )
            axes.add_patch(box)
            axes.text(0.35, y + 0.1, f"{row.stage}: {row.state}", fontweight="bold", va="center")
            axes.text(0.35, y - 0.15, (row.sha256 or "no weights")[:12], va="center", family="monospace", fontsize=8)
            for number, parent in enumerate(parent for parent in row.parents if parent in place):
                start, end = (6.55, place[parent] - 0.1), (6.55, y + 0.12 - 0.12 * number)
                bend = -0.28 * (place[parent] - y) ** 0.5
                arrow = FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=10, color="0.25")
                axes.add_patch(arrow)
        return Plot("The stages of the run and their parents", describe_chain(rows), _svg(figure))


def describe_chain(rows: Sequence[StatusRow]) -> str:
    """Return the chain in words."""
    told = []
    for row in rows:
        weights = f", weights {row.sha256[:12]}" if row.sha256 else ""
        parents = f", trained from {' and '.join(row.parents)}" if row.parents else ""
        told.append(f"{row.stage} is {row.state}{weights}{parents}")
    return f"Chain of stages: {'; '.join(told)}."


def draw_curves(title: str, curves: Mapping[str, Series], y_label: str, logarithmic: bool = False) -> Plot | None:
    """Draw curves against the step; None where none has a finite value."""
    lines = [Line(tag.rpartition("/")[2], *_points(series)) for tag, series in curves.items() if len(series.finite.steps)]
    return draw_lines(title, lines, "step", y_label, logarithmic) if lines else None


def _points(series: Series) -> tuple[Any, Any]:
    thinned = thin(series.finite)
    return thinned.steps, thinned.values


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
