"""Plots of the page: differences of each row from the one it is compared with, by seed and with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from walt_pl.files import whole_file
from walt_pl.paper.compare import LOWER_IS_BETTER, MARGINS, compare
from walt_pl.paper.record import RESULTS, Record, of_row, values_of
from walt_pl.paper.row import TABLES, Row, find_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Mapping[tuple[str, int], Record]


def plot_path(folder: str) -> str:
    """Return the path of a table's plot, relative to the folder of the page."""
    return f"{RESULTS}/{folder}.png"


def compared_rows(own: Sequence[Row], records: Records, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a table that have a result, and whose compared row has one."""
    return [row for row in own if row.against and of_row(records, row) and of_row(records, find_row(row.against, rows))]


def draw_plots(records: Records, rows: Sequence[Row], out: Path) -> None:
    """Draw the plot of each table that has compared rows, into the folder of the page."""
    for table in TABLES:
        own = [row for row in rows if row.table == table]
        if shown := compared_rows(own, records, rows):
            path = out / plot_path(own[0].folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(shown, records, rows, path)


def _draw(shown: Sequence[Row], records: Records, rows: Sequence[Row], path: Path) -> None:
    """Draw a panel for each figure, and in it one line a row: a dot for each seed, and the mean with Welch's 95 % interval."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [name for name in MARGINS if any(name in row.figures for row in shown)]
    size = (2 + 2.4 * len(names), 0.4 * len(shown) + 1.3)
    figure, panels = pyplot.subplots(1, len(names), sharey=True, squeeze=False, figsize=size, layout="constrained")
    for name, axes in zip(names, panels[0], strict=True):
        for place, row in enumerate(shown):
            if name in row.figures:
                sides = [values_of(name, of_row(records, one)) for one in (row, find_row(row.against, rows))]
                _draw_line(axes, place, *sides)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_title(f"{name.replace('_', ' ')} ({'lower' if name in LOWER_IS_BETTER else 'higher'} is better)", fontsize="medium")
    panels[0][0].set_yticks(range(len(shown)), [row.name.replace("_", " ") for row in shown])
    panels[0][0].invert_yaxis()
    figure.supxlabel("difference from the compared row: seeds (grey dots), mean with 95 % interval (blue diamonds)", fontsize="medium")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png", metadata={"Software": None})
    pyplot.close(figure)


def _draw_line(axes: Axes, place: int, values: Sequence[float], others: Sequence[float]) -> None:
    """Draw the line of one row into a panel.

    Args:
        axes: the panel.
        place: height of the line.
        values: figure of the row by seed.
        others: that of the compared row.
    """
    if not values or not others:
        return
    base = sum(others) / len(others)
    axes.plot([value - base for value in values], [place] * len(values), "o", color="0.6", markersize=4, zorder=1)
    if (difference := compare(values, others)) is not None:
        spread = [[difference.value - difference.low], [difference.high - difference.value]]
        axes.errorbar([difference.value], [place], xerr=spread, fmt="D", color="C0", capsize=3, markersize=4, zorder=2)
