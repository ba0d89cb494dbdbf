"""Measure the frame prediction of a run for `walt evaluate`: a table, a picture and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from datamodules.joint import JointData
from walt_pl.cli.console import print_table
from walt_pl.cli.evaluate_options import EvaluateOptions
from walt_pl.cli.evaluate_run import ROWS
from walt_pl.evaluation.prediction import MODEL, REPEATED, MeasuredPrediction, PredictionMeasurement
from walt_pl.evaluation.prediction_record import PREDICTION_COLUMNS, PREDICTION_FILE, PREDICTION_PICTURE, PredictionFigures
from walt_pl.evaluation.program import describe_program
from walt_pl.evaluation.ranks import Ranks
from walt_pl.evaluation.results import record_prediction
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.run_source import artifact_facts
from walt_pl.evaluation.source import ClipDraw
from walt_pl.evaluation.window_source import WindowSource
from walt_pl.files import write_whole
from walt_pl.media.contact_sheet import contact_sheet
from walt_pl.media.types import Frames
from walt_pl.media.writing import write_image
from walt_pl.paper.figure import mean_figure
from walt_pl.plain_records import build_record
from walt_pl.sampling.cascade import Cascade, SamplingConfig

MOST_VIDEOS = 256
"""Most held-out videos without --clips."""
SHOWN = 4
"""Most videos in the picture."""
TASKS = {True: "image to video from 1 frame", False: "frame prediction from {} frames"}
"""Task in words, by whether one frame is given."""


def measure_prediction(options: EvaluateOptions, cascade: Cascade, data: JointData, sampling: SamplingConfig) -> None:
    """Compare continued windows of held-out videos with the true frames, beside two baselines, and write the figures.

    Raises:
        ValueError: the split has no video that is long enough, or none can be read.
    """
    ranks = Ranks.from_environment()
    transform = replace(data.clip_transform, frames=cascade.clip_frames)
    windows = WindowSource(data.index, options.split or "val", transform, options.clips or MOST_VIDEOS, options.seed)
    measurement = PredictionMeasurement(options.run, cascade, windows, sampling, options.seed)
    rows = options.run / ROWS
    measured = measurement.measure(MeasureOptions(rows, rows, options.batch, ranks, str(cascade.device)))
    if not ranks.is_first:
        return
    plain = [summarise(one, measured) for one in measured]
    figures = [build_record(PredictionFigures, one, "figures") for one in plain]
    print_table(render_figures(figures))
    picture, file = options.run / PREDICTION_PICTURE, options.run / PREDICTION_FILE
    write_image(picture, draw_prediction(measurement, measured))
    videos = len({window.item for window in windows.windows})
    facts = {
        "figures": plain,
        "windows": windows.facts(),
        "artifacts": artifact_facts(cascade),
        "steps": {stage: sampling.steps_of(stage) for stage in cascade.stages},
        "guidance": {stage: asdict(cascade.guidance(stage, sampling)) for stage in cascade.stages},
        "seed": options.seed,
        "program": describe_program(str(cascade.device), ranks.world),
    }
    write_whole(file, f"{json.dumps(facts, indent=2)}\n".encode())
    record_prediction(options.run, figures, facts)
    left_out = f" ({windows.left_out_videos} left out: too short, or quarantined)" if windows.left_out_videos else ""
    of = f'{len(windows)} windows of {videos} videos of split "{windows.split}"{left_out}'
    print(f"{of}, new frames alone; look at {picture}, figures in {file}")


def summarise(one: MeasuredPrediction, measured: Sequence[MeasuredPrediction]) -> dict[str, Any]:
    """Return the figures of a prediction: means over videos, and the difference of PSNR from the repeated frame.

    A case of an interval is a video, with the mean of its windows: windows of one video resemble each other.

    Args:
        one: the prediction.
        measured: all of them; that of the repeated frame for equal stage and given frames is among them.
    """
    facts = {"stage": one.stage, "size": list(one.size), "given": one.given, "task": TASKS[one.given == 1].format(one.given)}
    facts |= {"prediction": one.prediction}
    if not one.rows:
        return facts
    (repeated,) = [other for other in measured if (other.stage, other.given, other.prediction) == (one.stage, one.given, REPEATED)]
    base = dict(zip(repeated.windows, repeated.rows["psnr"].tolist(), strict=True))
    figures = {name: dict(zip(one.windows, rows.tolist(), strict=True)) for name, rows in one.rows.items()}
    if one is not repeated:
        figures["psnr_gain"] = {window: value - base[window] for window, value in figures["psnr"].items() if window in base}
    return facts | {"windows": len(one.windows)} | {name: describe_videos(values) for name, values in figures.items()}


def describe_videos(values: Mapping[ClipDraw, float]) -> dict[str, Any]:
    """Return the mean over videos of the mean over their windows, the number of videos, and the interval. One video has no interval."""
    videos: dict[int, list[float]] = {}
    for window, value in values.items():
        videos.setdefault(window.item, []).append(value)
    means = torch.tensor([sum(found) / len(found) for found in videos.values()], dtype=torch.float64)
    if len(means) == 1:
        return {"value": float(means), "cases": 1, "low": None, "high": None}
    return asdict(mean_figure(means))


def render_figures(figures: Sequence[PredictionFigures]) -> Table:
    """Return the figures as a table for the terminal, with 95 % intervals over videos."""
    table = Table(*PREDICTION_COLUMNS)
    for one in figures:
        table.add_row(*one.cells())
    return table


def draw_prediction(measurement: PredictionMeasurement, measured: Sequence[MeasuredPrediction]) -> Frames:
    """Return a picture, uint8 [h w 3]: the true clip, the model's and the repeated frame abreast, of one window of some videos.

    It has the last stage, from as many given frames as the model takes.

    Args:
        measurement: of the windows.
        measured: says which windows can be read.
    """
    cascade, windows = measurement.cascade, measurement.windows
    stage, given = cascade.stages[-1], measurement.given_frames()[0]
    size, frames = cascade.pixels(stage), cascade.clip_frames
    (of_model,) = [one for one in measured if (one.stage, one.given, one.prediction) == (stage, given, MODEL)]
    firsts = {window.item: window for window in reversed(of_model.windows)}
    draws = [measurement.draws[windows.windows.index(firsts[video])] for video in sorted(firsts)[:SHOWN]]
    sources = measurement.sources(stage, given)
    shown = [windows, *(source for name in (MODEL, REPEATED) if (source := sources[name]) is not None)]
    names = windows.names()
    clips, lines = [], []
    for draw, *row in zip(draws, *(source.read(draws, frames, 1, size).clips for source in shown), strict=True):
        clips += [clip.permute(3, 0, 1, 2).float().div(127.5).sub(1) for clip in row if clip is not None]
        lines += [f"true: {Path(names[draw.item]).name}", f"{MODEL}: {given} of {frames} frames given", REPEATED]
    return contact_sheet(torch.stack(clips), lines, shown=7, columns=3)
