"""The section of the trainings: plots, previews and all recorded values of each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from walt_pl.report.blocks import Block, Group, MovingPicture, Pictures, Plot, Plots, Section, Table, Text, shorten
from walt_pl.report.event_file import PicturePlace, read_picture
from walt_pl.report.plots import MOST_POINTS, Line, draw_curves, draw_lines
from walt_pl.report.run_contents import RunContents
from walt_pl.report.training_logs import Series, TrainingLogs
from walt_pl.runs.status import StatusRow

MOST_PREVIEWS = 6
"""Previews of a tag that are shown: first, last, and others at equal distances."""
MOST_PREVIEW_TAGS = 4
"""Tags of previews of a stage that are shown. A stage has one or two."""
MOST_VALIDATIONS = 4
"""Validations in the plot of the loss by timestep: first, last, and others at equal distances."""
T = TypeVar("T")
TIMESTEP = re.compile(r"val/loss_(\d{3})")


class CurveGroup(NamedTuple):
    """Curves that share a plot."""

    title: str
    y_label: str
    tags: tuple[str, ...]
    logarithmic: bool = False


GROUPS = (
    CurveGroup(
        "Training loss by kind",
        "loss",
        ("train/loss", "train/loss_video", "train/loss_image", "train/mse_video", "train/mse_image"),
        logarithmic=True,
    ),
    CurveGroup("Other terms of the loss", "value", ("train/kl", "train/perceptual"), logarithmic=True),
    CurveGroup("Validation loss", "loss", ("val/loss",)),
    CurveGroup("Validation PSNR", "PSNR in dB", ("val/psnr_video", "val/psnr_image")),
    CurveGroup("Gradient norm", "norm", ("train/gradient_norm",), logarithmic=True),
    CurveGroup("Learning rate", "rate", ("train/learning_rate",)),
    CurveGroup("Speed", "clips a second", ("speed/clips_per_second",)),
    CurveGroup("Waiting for data", "share of the time", ("speed/waiting_for_data",)),
)
HEALTH = (
    CurveGroup("Discriminator: accuracy and pauses", "share", ("train/discriminator_accuracy", "train/discriminator_paused")),
    CurveGroup("Discriminator: logits", "logit", ("train/logit_real", "train/logit_fake", "train/logit_gap")),
    CurveGroup("Discriminator: loss terms", "value", ("train/discriminator_loss", "train/adversarial", "train/r1")),
    CurveGroup(
        "Discriminator: gradients",
        "norm or ratio",
        ("train/gradient_ratio", "train/discriminator_gradient_norm", "train/discriminator_gradient_norm_with_r1"),
        logarithmic=True,
    ),
)
"""Health of the autoencoder's discriminator (docs/GUARD.md says how to read it)."""


def training_section(run: RunContents) -> Section:
    """Return the curves and previews of every stage."""
    groups = [Group(row.stage, _stage_blocks(run, row)) for row in run.rows]
    about = (
        f"Lines differ in dashes and marker as well as in colour. A curve of more than {MOST_POINTS} points is drawn by its first and last "
        "point, and by the least and the greatest value of equal parts between them, so spikes stay. After a resume the later start counts."
    )
    return Section("training", "Training", [Text(about), *groups])


def _stage_blocks(run: RunContents, row: StatusRow) -> list[Block]:
    logs = run.trainings[row.stage]
    if not logs.curves and not logs.pictures:
        return [_no_curves(row)]
    plots = _plots(logs.curves, GROUPS)
    if (timesteps := _timestep_plot(logs.curves)) is not None:
        plots.insert(1, timesteps)
    blocks: list[Block] = [Plots(plots), *_single_values(logs.curves)]
    health = _plots(logs.curves, HEALTH)
    if health:
        blocks.append(Group("Health of the discriminator", [Plots(health)]))
    elif row.kind == "vae":
        blocks.append(Text("This autoencoder was trained without a discriminator, so there are no curves of its health."))
    metrics = {tag: series for tag, series in logs.curves.items() if tag.startswith("metrics/")}
    measured = [plot for tag, series in metrics.items() if (plot := draw_curves(f"Metric {tag[8:]}", {tag: series}, tag[8:]))]
    if measured:
        blocks.append(Group("Metrics", [Plots(measured)]))
    blocks.append(Group("Previews", _previews(row.stage, logs)))
    blocks.append(_values(logs.curves))
    return blocks


def _no_curves(row: StatusRow) -> Text:
    if row.state == "not started":
        return Text("This stage has not started. Train it with:", row.command)
    cause = "Only the logger tensorboard writes one, and an adopted artifact has its curves where it was trained."
    return Text(f"No curves: the run has no event file of this stage. {cause}")


def _plots(curves: Mapping[str, Series], groups: Sequence[CurveGroup]) -> list[Plot]:
    drawn = []
    for title, y_label, tags, logarithmic in groups:
        found = {tag: curves[tag] for tag in tags if tag in curves}
        if (
            any(len(series.finite.steps) > 1 for series in found.values())
            and (plot := draw_curves(title, found, y_label, logarithmic)) is not None
        ):
            drawn.append(plot)
    return drawn


def _single_values(curves: Mapping[str, Series]) -> list[Text]:
    """Return the values of the plots' tags that were recorded once: a single point is no curve."""
    tags = [tag for group in GROUPS for tag in group.tags if tag in curves and len(curves[tag].finite.steps) == 1]
    told = [f"{tag} {curves[tag].finite.values[0]:.4g} at step {curves[tag].finite.steps[0]}" for tag in tags]
    return [Text(f"Recorded once: {', '.join(told)}.")] if told else []


def _timestep_plot(curves: Mapping[str, Series]) -> Plot | None:
    """Return the validation loss by timestep, a line for each of a few validations; None without such values."""
    by_timestep = {int(found[1]): series.finite for tag, series in curves.items() if (found := TIMESTEP.fullmatch(tag))}
    steps = np.unique(np.concatenate([series.steps for series in by_timestep.values()] or [np.array([], np.int64)]))
    lines = []
    for step in _spread(steps.tolist(), MOST_VALIDATIONS):
        points = [(timestep, series.values[series.steps == step]) for timestep, series in sorted(by_timestep.items())]
        known = [(timestep, values[-1]) for timestep, values in points if len(values)]
        lines.append(Line(f"after step {step}", [timestep for timestep, _ in known], np.array([value for _, value in known])))
    return draw_lines("Validation loss by timestep", lines, "timestep", "loss") if lines else None


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` items, first and last among them, at equal distances."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _previews(stage: str, logs: TrainingLogs) -> list[Block]:
    if not logs.pictures:
        return [Text("No previews: none was written yet, or previews.every_n_validations is 0.")]
    blocks: list[Block] = []
    for tag, places in list(logs.pictures.items())[:MOST_PREVIEW_TAGS]:
        shown = _spread(places, MOST_PREVIEWS)
        name = shorten(tag.removeprefix("previews/")).replace("_", " ")
        number = f", {len(shown)} of {len(places)}" if len(shown) < len(places) else ""
        clips = "Clips of previews.prompts" if tag == "previews/prompts" else f"{name[:1].upper()}{name[1:]} of fixed clips"
        blocks.append(Text(f"{clips} with fixed noise, by the averaged weights{number}:"))
        blocks.append(Pictures([_preview(stage, name, place) for place in shown]))
    return blocks


def _preview(stage: str, name: str, place: PicturePlace) -> MovingPicture:
    alt = f"Moving preview, {name} of {stage} after {place.step} steps"
    return MovingPicture(f"after {place.step} steps", alt, partial(read_picture, place))


def _values(curves: Mapping[str, Series]) -> Table:
    rows = []
    for tag, series in curves.items():
        known = series.finite
        numbers = [known.values[0], known.values[-1], known.values.min(), known.values.max()] if len(known.steps) else []
        lost = len(series.steps) - len(known.steps)
        rows.append([shorten(tag), f"{len(series.steps):,}", *([f"{value:.4g}" for value in numbers] or ["-"] * 4), f"{lost:,}"])
    return Table("All recorded values", ("tag", "points", "first", "last", "least", "greatest", "not finite"), rows, folded=True)
