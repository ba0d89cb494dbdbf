"""The page docs/RESULTS.md, made from the files of results and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from walt_pl.paper.compare import MARGINS, UNKNOWN, Difference, compare, mean_and_deviation, verdict
from walt_pl.paper.plots import compared_rows, plot_path
from walt_pl.paper.record import Record, of_row, picture_path, values_of
from walt_pl.paper.row import TABLES, Row, Table, find_row

TITLE = "# The paper in miniature"
Records = Mapping[tuple[str, int], Record]
SHARES = ("colour", "motion", "shape", "texture", "pair", "all", "unseen_pairs", "visible")
"""Figures that are shares of clips, shown in percent. A number may follow, such as that of a guidance scale."""
UNITS = {"first_frame_psnr": "dB", "position_error": "px", "seam": "px", "inside": "px", "steadiness": "px"}
"""Units of other figures, by the beginning of their names."""
BY_SCALE = ("guidance",)
"""Measures whose figures end with a guidance scale."""
HEADINGS: dict[Table, str] = {
    "tasks": "Tasks",
    "ablations": "Ablations, in equal steps",
    "equal time": "Ablations, in equal time",
    "causes": "Causes of surprises",
}
INTRODUCTIONS: dict[Table, str] = {
    "tasks": (
        "Each task is trained with one seed, and intervals are over cases. Shape, colour, motion and texture are the shares of clips in "
        "which the scorer reads the right word. All is that of shape, colour and motion together. Iou is the overlap of the object with an "
        "ideal shape."
    ),
    "ablations": (
        "The small base with one switch of the paper's Table 3 changed, in equal steps. The autoencoder of a run is shared by all rows and "
        "seeds; the row of 4 latent channels has one of its own, trained once. So seeds vary the base alone."
    ),
    "equal time": (
        "The rows whose steps take another time than the default's, trained for the default's seconds. Their steps follow from the "
        "seconds a step of each row's fastest seed, validation included. The default is that of the ablations above."
    ),
    "causes": (
        "Bases of the ablations above, of seed 0, and trainings of other lengths and with another optimiser, one seed each. Loss N is the "
        "error at timestep N. Growth N says how far that error grows when the caption names another shape: 0 for a model that does not "
        "read the word. [What they show](EXPERIMENTS.md#surprises-of-the-ablations)."
    ),
}


def render(records: Records, rows: Sequence[Row]) -> str:
    """Render the page as Markdown.

    Args:
        records: results by name of the row and seed.
        rows: all rows, with and without results.
    """
    short = any(record.short for record in records.values())
    lines = [
        TITLE,
        "",
        "`make paper` trains and measures the rows below on the embedded set, and writes this page from the files in `results/`.",
        "Edit neither: a test compares them. A row that has its file is not run again; an interrupted command goes on.",
        "`make paper SHORT=1` takes one seed, 40 steps a training and an eighth of the cases. Its page lies in runs/paper_short.",
        "",
        *(["**A short run: one seed, few steps and cases. Its figures prove nothing.**", ""] if short else []),
        *_describe_statistics(),
    ]
    for table in TABLES:
        own = [row for row in rows if row.table == table]
        if own:
            lines += ["", f"## {HEADINGS[table]}", "", INTRODUCTIONS[table], *_render_table(own, records, rows)]
    return "\n".join([*lines, "", "## Runs", "", *_render_runs(records, rows)]) + "\n"


def _describe_statistics() -> list[str]:
    margins = ", ".join(f"{name.replace('_', ' ')} {_show(name, margin)}" for name, margin in MARGINS.items())
    return [
        "| term | meaning |",
        "|---|---|",
        "| figure | mean over seeds ± standard deviation over seeds; with one seed, the 95 % interval over the clips in brackets |",
        "| difference | mean minus that of the compared row, with Welch's 95 % interval over seeds; it needs two seeds of both |",
        '| "as the paper" | the interval lies on the side of zero that the paper reports |',
        '| "other than the paper" | the interval lies on the other side of zero |',
        f"| no clear difference in the paper | the interval agrees within the margin ({margins}), and disagrees wholly beyond it |",
        f'| "{UNKNOWN}" | every other interval, and fewer than two seeds |',
        "| loss | error of the prediction of v at timesteps 100, 300, 500, 700 and 900, with fixed noise |",
        "",
        "Losses of other latents (4 channels, not normalised) or of another schedule (no zero terminal SNR) do not compare.",
        "With self-conditioning, the loss is that of a first pass, without an estimate, and does not compare either.",
        "Intervals are not widened for their number: of forty, two leave out zero by chance alone.",
    ]


# ---- Tables ------------------------------------------------------------------------------------------------------------


def _render_table(own: Sequence[Row], records: Records, rows: Sequence[Row]) -> list[str]:
    """Render the rows of one table: a section for each task, or one table of all figures."""
    done = [row for row in own if of_row(records, row)]
    parts = [_render_task(row, records) for row in done] if own[0].table == "tasks" else [_render_figures(done, records)]
    parts.append(_render_verdicts([row for row in done if row.against], records, rows))
    parts.append([f"![differences]({plot_path(own[0].folder)})"] if compared_rows(own, records, rows) else [])
    if own[0].table != "tasks":
        parts.append(_link_pictures(done, records))
    missing = _list_missing(own, records)
    parts.append([f"Not run: {missing}."] if missing else [])
    return [line for part in parts if part for line in ("", *part)]


def _render_figures(rows: Sequence[Row], records: Records) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for record in of_row(records, row) for name in record.figures))
    heading = ["row", "seeds", *(name.replace("_", " ") for name in names), "steps", "minutes"]
    lines = [_line(heading), _line(["---"] * len(heading))]
    for row in rows:
        found = of_row(records, row)
        steps = sorted({record.steps.get(row.trainings[-1].stage, 0) for record in found}) if row.trainings else []
        minutes = [record.minutes.get("training", 0.0) for record in found]
        cells = [row.text, str(len(found)), *(_show_figure(name, found) for name in names)]
        lines.append(_line([*cells, _show_range([f"{count:,}" for count in steps]), f"{sum(minutes) / len(minutes):.1f}"]))
    return lines


def _render_verdicts(compared: Sequence[Row], records: Records, rows: Sequence[Row]) -> list[str]:
    if not compared:
        return []
    figures = [name for name in MARGINS if any(name in row.figures for row in compared)]
    heading = ["row", "paper (FVD)", "the paper says", *(f"here, by {name.replace('_', ' ')}" for name in figures)]
    lines = [_line(heading), _line(["---"] * len(heading))]
    for row in compared:
        said = {1: "better", -1: "worse", 0: "no clear difference"}[row.expected]
        cells = [_render_verdict(name, row, records, rows) if name in row.figures else "does not compare" for name in figures]
        lines.append(_line([row.text, row.paper, said, *cells]))
    return lines


def _render_verdict(figure: str, row: Row, records: Records, rows: Sequence[Row]) -> str:
    difference = difference_of(figure, row, records, rows)
    said = verdict(figure, row.expected, difference)
    return said if difference is None else f"{_show_difference(figure, difference)}: {said}"


def _render_task(row: Row, records: Records) -> list[str]:
    """Render the section of a task: text, figure of the paper, figures, picture, and what it took."""
    found = of_row(records, row)
    parts = [[f"### {row.text}"], [row.about] if row.about else [], [f"The paper: {row.paper}."] if row.paper else []]
    parts.append(_render_scales(found) if row.measure in BY_SCALE else _render_cases(found))
    if any(record.picture for record in found):
        parts.append([f"!{_link_picture(row)}"])
    parts.append([_describe_training(record) for record in found])
    return [line for part in parts if part for line in ("", *part)][1:]


def _render_cases(found: Sequence[Record]) -> list[str]:
    """Render a line for each figure of a task."""
    lines = [_line(["figure", "value", "cases"]), _line(["---"] * 3)]
    for name in dict.fromkeys(name for record in found for name in record.figures):
        lines.append(_line([name.replace("_", " "), _show_figure(name, found), _show_cases(name, found)]))
    return lines


def _render_scales(found: Sequence[Record]) -> list[str]:
    """Render a line for each guidance scale."""
    names = [name.rpartition("_") for record in found for name in record.figures]
    figures, scales = (list(dict.fromkeys(name[part] for name in names)) for part in (0, 2))
    lines = [_line(["scale", *figures, "prompts"]), _line(["---"] * (len(figures) + 2))]
    for scale in scales:
        own = [f"{figure}_{scale}" for figure in figures]
        lines.append(_line([scale, *(_show_figure(name, found) for name in own), _show_cases(own[0], found)]))
    return lines


def _describe_training(record: Record) -> str:
    """Return steps, minutes and machine of a task as a sentence."""
    steps = ", ".join(f"{count:,} steps of `{stage}`" for stage, count in record.steps.items())
    training, measuring = (record.minutes.get(part, 0.0) for part in ("training", "measuring"))
    return f"Seed {record.seed}: {steps}; {training:.1f} minutes of training and {measuring:.1f} of measuring on {_name_machine(record)}."


def _link_pictures(rows: Iterable[Row], records: Records) -> list[str]:
    links = [_link_picture(row) for row in rows if any(record.picture for record in of_row(records, row))]
    return [f"Clips of the first seed: {', '.join(links)}."] if links else []


def _link_picture(row: Row) -> str:
    return f"[{row.name.replace('_', ' ')}]({picture_path(row).as_posix()})"


def _name_machine(record: Record) -> str:
    return record.machine if record.device == "cpu" else f"{record.device} ({record.machine})"


def _list_missing(rows: Iterable[Row], records: Records) -> str:
    parts = []
    for row in rows:
        seeds = [seed for seed in row.seeds if (row.name, seed) not in records]
        if len(seeds) == len(row.seeds):
            parts.append(row.text)
        elif seeds:
            parts.append(f"{row.text} with seed {', '.join(map(str, seeds))}")
    return "; ".join(parts)


def difference_of(figure: str, row: Row, records: Records, rows: Sequence[Row]) -> Difference | None:
    """Return the difference of a row's figure from that of the row it is compared with; None with too few seeds."""
    return compare(*(values_of(figure, of_row(records, one)) for one in (row, find_row(row.against, rows))))


# ---- Runs --------------------------------------------------------------------------------------------------------------


def _render_runs(records: Records, rows: Sequence[Row]) -> list[str]:
    """Render machine, commit, time and memory of every file."""
    if not records:
        return ["Nothing has been run."]
    autoencoders = {
        record.stages["vae"] for row in rows if not row.has_own_autoencoder for record in of_row(records, row) if "vae" in record.stages
    }
    total = sum(sum(record.minutes.values()) for record in records.values())
    lines = [f"{len(records)} runs, {total / 60:.1f} hours by the clock of each, pauses and other programs included."]
    if len(autoencoders) > 1:
        lines += ["", f"These rows are of {len(autoencoders)} autoencoders and do not compare: `make paper` trains the older ones anew."]
    heading = ["row", "seed", "minutes", "GiB", "ms a step", "machine", "device", "side by side", "commit", "date"]
    lines += ["", _line(heading), _line(["---"] * len(heading))]
    for row in rows:
        for record in of_row(records, row):
            pace = ", ".join(f"{stage} {1000 * seconds:.0f}" for stage, seconds in record.seconds_a_step.items())
            commit = f"`{record.commit[:12]}`{' and changes' if record.dirty else ''}" if record.commit else "unknown"
            minutes = " + ".join(f"{record.minutes.get(part, 0.0):.1f}" for part in ("training", "measuring"))
            cells = [record.row, str(record.seed), minutes, f"{record.peak_gib:.1f}", pace, record.machine, record.device]
            lines.append(_line([*cells, str(record.jobs), commit, record.date[:10]]))
    return lines


# ---- Cells -------------------------------------------------------------------------------------------------------------


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _show_range(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else " to ".join((values[0], values[-1])) if values else ""


def _show(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if _is_share(name) else f"{value:.3g}"


def _is_share(name: str) -> bool:
    return re.sub(r"_[\d.]+$", "", name) in SHARES


def _show_cases(name: str, records: Sequence[Record]) -> str:
    counts = sorted({record.figures[name].cases for record in records if name in record.figures})
    return _show_range([f"{count:,}" for count in counts])


def _show_figure(name: str, records: Sequence[Record]) -> str:
    """Return a figure over seeds: mean ± deviation, or the value with the interval of its cases for one seed."""
    having = [record.figures[name] for record in records if name in record.figures]
    if not having:
        return ""
    mean, deviation = mean_and_deviation([figure.value for figure in having])
    unit = next((f" {unit}" for begin, unit in UNITS.items() if name.startswith(begin)), "")
    if deviation is None:
        return f"{_show(name, mean)}{unit} [{_show(name, having[0].low)}, {_show(name, having[0].high)}]"
    return f"{_show(name, mean)}{unit} ± {_show(name, deviation)}"


def _show_difference(name: str, difference: Difference) -> str:
    scale, unit = (100, " points") if _is_share(name) else (1, "")
    value, low, high = (f"{scale * number:+.3g}" for number in (difference.value, difference.low, difference.high))
    return f"{value}{unit} [{low}, {high}]"
