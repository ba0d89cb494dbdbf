"""The sections of the page beside the trainings: chain, samples, metrics, data, incidents, configuration, environment and cost."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from walt_pl.evaluation.card import CARD_COLUMNS, card_cells
from walt_pl.evaluation.prediction_record import PREDICTION_COLUMNS
from walt_pl.report.blocks import Block, Group, MovingPicture, Pictures, Plots, Record, Section, Table, Text, format_number, shorten
from walt_pl.report.captions import describe_captions, read_captions
from walt_pl.report.plots import draw_chain
from walt_pl.report.run_contents import RunContents
from walt_pl.report.training_logs import MOST_INCIDENTS, Start, TrainingLogs, compare_starts
from walt_pl.runs.data_record import KindRecord
from walt_pl.untrusted import read_bytes

MAX_PICTURE_BYTES = 64 << 20
"""Bytes of a moving picture of samples."""
MOST_CARDS = 60
"""Metric cards that are shown in full."""
CARD_CHARACTERS = 8000
"""Characters of a metric card that is shown in full."""
MOST_LATER_STARTS = 10
"""Later starts of a training whose first step is told: the last ones."""
MEGABYTE = 1e6


def chain_section(run: RunContents) -> Section:
    """Return the chain of stages as a picture and as a table."""
    rows = []
    for row in run.rows:
        step = "" if row.step is None else f" at step {row.step:,}" + (f" of {row.total:,}" if row.total else "")
        parents = ", ".join(f"{parent} {sha256[:12]}" for parent, sha256 in row.parents.items())
        rows.append([row.stage, f"{row.state}{step}", (row.sha256 or "")[:12], parents, (row.time or "")[:19].replace("T", " ")])
    head = ("stage", "state", "weights (SHA-256)", "trained from", "time (UTC)")
    blocks: list[Block] = [Plots([draw_chain(run.rows)]), Table("States of the stages", head, rows)]
    blocks += [Text(f"{row.stage} is {row.state}. Next:", row.command) for row in run.rows if row.command]
    return Section("chain", "Chain of stages", blocks)


# ---- Samples ---------------------------------------------------------------------------------------------------------


def samples_section(run: RunContents) -> Section:
    """Return the moving pictures of samples with their captions."""
    if not run.samples:
        if not run.sample_command:
            return Section(
                "samples", "Samples", [Text("No samples yet: they need a base model. The chain of stages says what to train next.")]
            )
        out = shlex.quote(f"{run.folder / 'samples'}/")
        return Section("samples", "Samples", [Text("No samples yet. Make some with:", f"{run.sample_command} --out {out}")])
    return Section("samples", "Samples", [Pictures([_sample(run.folder, path) for path in run.samples])])


def _sample(folder: Path, path: Path) -> MovingPicture:
    name = path.relative_to(folder).as_posix()
    load = partial(read_bytes, path, MAX_PICTURE_BYTES)
    captions = read_captions(load)
    caption = name if captions else f"{name}. The file has no list of its captions; they are drawn below the clips."
    return MovingPicture(caption, f"Moving samples of {name}{describe_captions(captions)}", load, captions)


# ---- Metrics ---------------------------------------------------------------------------------------------------------


def metrics_section(run: RunContents) -> Section:
    """Return all figures: metric cards and frame prediction with their protocols, the demo's scores, and the last validation."""
    blocks: list[Block] = []
    cards = [(name, card) for name, found in run.metric_cards.items() for card in found]
    if cards:
        blocks.append(
            Table(
                "Figures of metric cards",
                ("file", *CARD_COLUMNS),
                [[shorten(name), *map(shorten, card_cells(card))] for name, card in cards],
            )
        )
        protocols = [Record(f"Protocol card: {shorten(name)}, {card.metric}", _indent(asdict(card))) for name, card in cards[:MOST_CARDS]]
        blocks.append(Group("Protocol cards", protocols))
    if run.prediction:
        blocks.append(_prediction_group(run))
    if not cards and not run.prediction:
        blocks.append(Text("No metric cards yet. Measure the run with:", f"walt evaluate {shlex.quote(str(run.folder))}"))
    if scores := _figures(run.summary.get("scores")):
        settings: dict[str, Any] = {name: run.summary[name] for name in ("seed", "steps", "guidance", "counts") if name in run.summary}
        shown: list[Block] = [_by_stage("Scores of the demo", scores), Record("Protocol of the demo's scores", _indent(settings))]
        blocks.append(Group("Scores of the demo, by the analytic scorer", shown))
    metrics = {stage: card.get("metrics", {}) for stage, card in run.cards.items()}
    if values := _figures({stage: found.get("values") for stage, found in metrics.items()}):
        table = _by_stage("Values in the artifacts' cards", values)
        told = dict.fromkeys(shorten(found["protocol"]) for found in metrics.values() if "protocol" in found)
        blocks.append(Group("Last validation of the artifacts", [table, Text(f"Protocol: {'; '.join(told)}.")]))
    return Section("metrics", "Metrics", blocks)


def _prediction_group(run: RunContents) -> Group:
    """Return the figures of frame prediction beside their baselines, with protocol and picture."""
    rows = [[shorten(cell) for cell in figures.cells()] for figures in run.prediction]
    blocks: list[Block] = [
        Table("New frames against the true ones of real videos, with 95 % intervals over videos", PREDICTION_COLUMNS, rows),
        Record("Protocol of frame prediction", _indent(run.prediction_protocol)),
    ]
    if run.prediction_picture is not None:
        about = "true frames, the model's, and the repeated frame of some windows"
        load = partial(read_bytes, run.prediction_picture, MAX_PICTURE_BYTES)
        blocks.append(Pictures([MovingPicture(f"{run.prediction_picture.name}: {about}", f"Frame prediction: {about}", load)]))
    return Group("Frame prediction", blocks)


def _indent(plain: Mapping[str, Any]) -> str:
    """Return plain values as text of limited length."""
    text = json.dumps(plain, indent=2)
    return text if len(text) <= CARD_CHARACTERS else f"{text[:CARD_CHARACTERS]}\n... ({len(text):,} characters in all)"


def _figures(plain: Any) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage that has some; other values are left out."""
    return {str(stage): found for stage, found in plain.items() if isinstance(found, dict)} if isinstance(plain, dict) else {}


def _by_stage(caption: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of figures, a row each, with a column for each stage."""
    names = dict.fromkeys(name for found in figures.values() for name in found)
    rows = [[shorten(name), *(format_number(found.get(name, "")) for found in figures.values())] for name in names]
    return Table(caption, ("figure", *map(shorten, figures)), rows)


# ---- Data ------------------------------------------------------------------------------------------------------------


def data_section(run: RunContents) -> Section:
    """Return counts and sizes of the data of each stage, and why clips were left out."""
    rows, notes, unrecorded = [], [], []
    for row in run.rows:
        logs = run.trainings[row.stage]
        record = logs.data
        if record is None:
            unrecorded.append(row.stage)
            continue
        rows += [_count_row(row.stage, split, kind, counts) for split, of in record.splits.items() for kind, counts in of.items()]
        index = f"index {record.index}" + (f", SHA-256 {record.sha256[:12]}" if record.sha256 else "")
        rate = f"{record.fps:g} frames a second" if record.fps else "the rate of the files"
        streamed = f"; {' and '.join(record.streamed)} clips are streamed from tar shards and not counted" if record.streamed else ""
        listed = ", ".join(f"{count:,} {finding}" for finding, count in record.quarantine.items()) or "nothing"
        notes.append([row.stage, shorten(index), f"{record.frames} frames at {rate}{streamed}", shorten(listed)])
    head = ("stage", "split", "kind", "used", "listed", "left out, by reason", "pixels of a batch, rows x columns")
    blocks: list[Block] = []
    if rows:
        blocks.append(Table("Clips and images of each stage's last start", head, rows))
        blocks.append(Table("Index, clip length and quarantine", ("stage", "index", "a video has", "on the quarantine list"), notes))
    counted = [[stage, *_card_counts(run.cards[stage])] for stage in unrecorded if stage in run.cards]
    if counted:
        blocks.append(Table("Counts in the artifacts' cards", ("stage", "index (SHA-256)", "clips and images used"), counted))
    if unrecorded:
        told = f"No record of sizes and of reasons why clips were left out: {', '.join(unrecorded)}."
        blocks.append(Text(f"{told} Training writes one at its first step; older versions wrote none."))
    return Section("data", "Data", blocks)


def _count_row(stage: str, split: str, kind: str, counts: KindRecord) -> list[str]:
    left_out = ", ".join(f"{count:,} {shorten(reason)}" for reason, count in counts.left_out.items()) or "none"
    sizes = ", ".join(f"{shorten(size)}: {count:,}" for size, count in counts.sizes.items())
    return [stage, shorten(split), shorten(kind), f"{counts.used:,}", f"{counts.listed:,}", left_out, shorten(sizes)]


def _card_counts(card: Mapping[str, Any]) -> list[str]:
    index = card.get("index", {})
    counts = index.get("counts")
    listed = (
        ", ".join(f"{format_number(count)} {name.replace('_', ' ')}" for name, count in counts.items()) if isinstance(counts, dict) else ""
    )
    return [shorten(str(index.get("sha256", ""))[:12]), shorten(listed)]


# ---- Incidents and configuration -------------------------------------------------------------------------------------


def incidents_section(run: RunContents) -> Section:
    """Return the steps that the spike guard did not take, and trainings that stopped or were started again."""
    head = ("step", "action", "why", "loss", "gradient norm", "layers with the largest norm", "files of the batch")
    blocks: list[Block] = []
    for stage, logs in run.trainings.items():
        if not logs.incident_count:
            continue
        rows = [
            [
                f"{one.step:,}",
                shorten(one.action),
                shorten(one.why),
                shorten(one.loss),
                shorten(one.gradient_norm),
                shorten(", ".join(one.layers)),
                shorten("; ".join(one.files[:3])) + (f" and {len(one.files) - 3} more" if len(one.files) > 3 else ""),
            ]
            for one in logs.incidents
        ]
        last = f", the last {MOST_INCIDENTS}" if logs.incident_count > MOST_INCIDENTS else ""
        blocks.append(Table(f"{stage}: {logs.incident_count:,} incidents of the spike guard{last}", head, rows))
    if not blocks:
        blocks.append(Text("No incidents: no step was skipped or rolled back."))
    blocks += [Text(_describe_starts(stage, logs.starts)) for stage, logs in run.trainings.items() if len(logs.starts) > 1]
    stopped = [row for row in run.rows if row.state in ("stopped", "missing", "stale")]
    blocks += [Text(f"{row.stage} is {row.state}" + (f" at step {row.step:,}." if row.step is not None else ".")) for row in stopped]
    return Section("incidents", "Incidents", blocks)


def _describe_starts(stage: str, starts: Sequence[Start]) -> str:
    """Return the number of a training's starts, and the first steps of the later ones where they are known."""
    later = starts[1:]
    first = [
        f"from step {start.record.step:,}" if start.record else f"first value at step {start.first_value:,}"
        for start in later
        if start.record or start.first_value is not None
    ]
    unknown = [f"first step of {len(later) - len(first)} unknown"] if len(first) < len(later) else []
    hidden = [f"{len(first) - MOST_LATER_STARTS} others"] if len(first) > MOST_LATER_STARTS else []
    return f"{stage} was started {len(starts)} times; later starts: {', '.join([*hidden, *first[-MOST_LATER_STARTS:], *unknown])}."


def changes_section(run: RunContents) -> Section:
    """Return the keys of the configuration that changed between the starts of a training."""
    blocks: list[Block] = []
    counts = []
    for stage, logs in run.trainings.items():
        changes = compare_starts(logs.starts)
        counts.append([stage, f"{len(logs.starts):,}", f"{len(changes):,}", _times(logs)])
        if changes:
            rows = [[shorten(start), shorten(key), shorten(old), shorten(new)] for start, key, old, new in changes]
            blocks.append(Table(f"{stage}: changed keys", ("start", "key", "before", "since"), rows))
    head = ("stage", "starts", "changed keys", "first and last event (UTC)")
    told = [] if blocks else [Text("No key changed between two starts of a training.")]
    return Section("changes", "Configuration changes between starts", [Table("Starts of each training", head, counts), *told, *blocks])


def _times(logs: TrainingLogs) -> str:
    times = [time for start in logs.starts for time in (start.began, start.ended) if time is not None]
    return f"{_date(min(times))} to {_date(max(times))}" if times else ""


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a damaged or hostile time
        return "unknown"


# ---- Environment and cost --------------------------------------------------------------------------------------------


def environment_section(run: RunContents) -> Section:
    """Return versions, machine, time, operations and disk space."""
    blocks: list[Block] = [_cost_table(run)]
    seconds = run.summary.get("seconds")
    if isinstance(seconds, dict):
        rows = [[shorten(part), _seconds(value)] for part, value in seconds.items()]
        machine = shorten(run.summary.get("machine", "an unknown machine"))
        where = f"The demo ran on {machine}, load {format_number(run.summary.get('load', ''))}."
        blocks += [Text(where), Table("Time of the demo's parts", ("part", "time"), rows)]
    blocks += _machines(run)
    packages = [[stage, shorten(card.get("code") or "unknown"), _packages(card.get("packages", {}))] for stage, card in run.cards.items()]
    if packages:
        blocks.append(Table("Code and packages that wrote the artifacts", ("stage", "code", "packages"), packages))
    devices = [[stage, *_devices(logs.config)] for stage, logs in run.trainings.items() if logs.config]
    if devices:
        head = ("stage", "accelerator", "devices", "machines", "strategy", "precision")
        blocks.append(Table("Devices, as the last start asked for them", head, devices))
    sizes = [[shorten(name), f"{size / MEGABYTE:,.1f} MB"] for name, size in run.bytes_on_disk.items()]
    sizes.append(["all", f"{sum(run.bytes_on_disk.values()) / MEGABYTE:,.1f} MB"])
    blocks.append(Table("Disk space", ("folder", "size"), sizes))
    return Section("environment", "Environment and cost", blocks)


def _machines(run: RunContents) -> list[Block]:
    """Return machine and code of each start, packages of the last one, and machine, time and command in the artifacts' cards."""
    blocks: list[Block] = []
    starts = [(stage, start.name, start.record) for stage, logs in run.trainings.items() for start in logs.starts if start.record]
    if starts:
        rows = [
            [stage, shorten(name), f"{one.step:,}", one.time[:19].replace("T", " "), *map(shorten, (one.machine, one.code or "unknown"))]
            for stage, name, one in starts
        ]
        head = ("stage", "start", "from step", "time (UTC)", "machine", "code")
        blocks.append(Table("Machine and code of each start", head, rows))
        last = {stage: one.packages for stage, _, one in starts}
        rows = [[stage, _packages(packages)] for stage, packages in last.items()]
        blocks.append(Table("Packages of each stage's last start", ("stage", "packages"), rows))
    trainings = {stage: card["training"] for stage, card in run.cards.items() if card.get("training")}
    if trainings:
        rows = [[stage, shorten(facts.get("machine") or "unknown"), _last_start(run.cards[stage])] for stage, facts in trainings.items()]
        blocks.append(Table("Machine and time in the artifacts' cards", ("stage", "machine", "time of the last start"), rows))
    blocks += [Text(f"{stage} was trained with:", facts["command"]) for stage, facts in trainings.items() if facts.get("command")]
    known = {*trainings, *(stage for stage, _, _ in starts)}
    if unknown := [row.stage for row in run.rows if row.stage not in known and row.state != "not started"]:
        told = f"No machine is recorded of {', '.join(unknown)}."
        blocks.append(Text(f"{told} Training writes one at its start and into its artifact; older versions wrote none."))
    return blocks


def _cost_table(run: RunContents) -> Table:
    rows = []
    for row in run.rows:
        logs, card = run.trainings[row.stage], run.cards.get(row.stage, {})
        spent = sum(start.ended - start.began for start in logs.starts if start.began is not None and start.ended is not None)
        rows.append(
            [
                row.stage,
                format_number(card.get("steps", "") if card else row.step or ""),
                format_number(card.get("samples", "")),
                _seconds(spent) if spent else _last_start(card),
                _mean(logs, "speed/clips_per_second"),
                _mean(logs, "speed/waiting_for_data", share=True),
                _mean(logs, "speed/mfu", share=True),
                _operations(logs, spent),
            ]
        )
    head = ("stage", "steps", "samples", "time of all starts", "clips a second", "waiting for data", "MFU", "operations of a device")
    return Table("Cost of each training; speeds are means of the recorded values", head, rows)


def _last_start(card: Mapping[str, Any]) -> str:
    """Return the time of the last start by the card of the artifact, where no file has the times of its starts."""
    training = card.get("training", {})
    if training.get("seconds") is None:
        return ""
    return _seconds(training["seconds"]) + (f" from step {training['from_step']:,} on" if training.get("from_step") else "")


def _operations(logs: TrainingLogs, seconds: float) -> str:
    rate = _mean_value(logs, "speed/tflops_per_gpu")
    return "" if rate is None or not seconds else f"{rate * seconds:.3g} TFLOP"


def _mean(logs: TrainingLogs, tag: str, share: bool = False) -> str:
    value = _mean_value(logs, tag)
    return "" if value is None else f"{value:.1%}" if share else f"{value:.4g}"


def _mean_value(logs: TrainingLogs, tag: str) -> float | None:
    values = logs.curves[tag].finite.values if tag in logs.curves else np.array([])
    return float(values.mean()) if len(values) else None


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return shorten(value)
    return f"{value:.0f} s" if value < 600 else f"{value / 60:,.1f} minutes" if value < 7200 else f"{value / 3600:,.1f} hours"


def _packages(packages: Mapping[str, Any]) -> str:
    return shorten(", ".join(f"{name} {version}" for name, version in packages.items()))


def _devices(config: Mapping[str, Any]) -> list[str]:
    keys = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    return [shorten(config.get(f"trainer.{key}", "")) for key in keys]
