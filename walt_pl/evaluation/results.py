"""Results of a run: files of cards, TensorBoard, the card of the artifact, and a table."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from walt_pl.evaluation.card import CARD_COLUMNS, MetricCard, card_cells, read_cards, write_cards
from walt_pl.evaluation.prediction import MODEL
from walt_pl.evaluation.prediction_record import PREDICTION_FILE, PredictionFigures
from walt_pl.evaluation.row_store import canonical_json
from walt_pl.runs.card import read_card
from walt_pl.runs.evaluations import add_evaluations
from walt_pl.runs.manifest import Manifest
from walt_pl.terminal_text import printable

LOGS = "metrics"
"""Folder beside those of the starts of a training (version_0, ...). An event file in one of them would end what TensorBoard reads of a
training that still writes there."""


def record_results(run: Path, stage: str, cards: Sequence[MetricCard], name: str) -> Table:
    """Write the figures of a stage to runs/NAME/metrics/STAGE_name_HASH.json, to TensorBoard and into the artifact's card.

    The hash is of protocol and clips: other guidance, steps or seeds have a file of their own. Other metrics of the same clips join the
    file; a figure that is measured again takes the place of the old one. The file comes first. A curve or a card that cannot be written
    costs one line on standard error. One process calls this.

    Args:
        run: folder of the run.
        stage: name of the stage whose samples or reconstructions were measured.
        cards: its figures.
        name: name of the evaluation, for the file: letters, digits, dots, hyphens and underscores.

    Returns:
        The table for the terminal.

    Raises:
        ValueError: the name has other characters, the run has no such stage, or a figure is nan or infinite.
        OSError: the file of the cards cannot be written.
    """
    if re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,99}", name, re.ASCII) is None:
        raise ValueError(f"metrics: the name {name!r} of an evaluation has other characters than letters, digits, dots, _ and -")
    manifest = Manifest.open(run)
    folder, sha256 = manifest.folder(stage), manifest.sha256(stage)
    if sha256 is None:
        raise ValueError(f'metrics: {run} has no finished stage "{stage}"; make it with: {manifest.advice(stage)}')
    file = run / "metrics" / f"{stage}_{name}_{_digest(cards[0])}.json"
    new = {_origin(card) for card in cards}
    older = [card for card in read_cards(file) if _origin(card) not in new] if file.exists() else []
    write_cards(file, [*older, *cards])
    measured = {str(_weights(card, stage) or sha256) for card in cards}
    if measured != {sha256}:
        _tell_of_other_weights(file, folder)
        return render_cards(cards)
    counts = Counter(card.metric for card in cards)
    # Two extractors of one metric, such as FVD by I3D and by VideoMAE, are two curves.
    tags = [card.metric + (f"_{card.extractor.get('kind')}" if counts[card.metric] > 1 else "") for card in cards]
    _write_scalars(manifest, stage, {tag: card.value for tag, card in zip(tags, cards, strict=True)})
    _add_to_card(manifest, stage, sha256, [_entry(card, file.relative_to(run)) for card in cards])
    return render_cards(cards)


def record_prediction(run: Path, figures: Sequence[PredictionFigures], facts: Mapping[str, Any]) -> None:
    """Write figures of frame prediction to TensorBoard and into the cards of the artifacts; prediction.json has all the rest.

    A curve or a card that cannot be written costs one line on standard error. One process calls this.

    Args:
        run: folder of the run.
        figures: those of the model and of its baselines, at each stage.
        facts: other entries of prediction.json: `windows`, `artifacts`, `steps`, `guidance` and `seed`.
    """
    manifest = Manifest.open(run)
    split = facts["windows"]["split"]
    for stage in dict.fromkeys(one.stage for one in figures):
        found = [
            (one, name, mean) for one in figures if one.stage == stage for name, mean in (("psnr", one.psnr), ("ssim", one.ssim)) if mean
        ]
        entries = [
            {
                "metric": name,
                "value": mean.value,
                "task": one.task,
                "prediction": one.prediction,
                **({} if mean.low is None or mean.high is None else {"interval": [round(mean.low, 4), round(mean.high, 4)]}),
                "videos": mean.cases,
                "windows": one.windows,
                **{name: facts["windows"][name] for name in ("split", "index_sha256")},
                **{name: facts[name] for name in ("guidance", "steps", "seed")},
                "file": PREDICTION_FILE,
            }
            for one, name, mean in found
        ]
        sha256 = facts["artifacts"][stage]["sha256"]
        if manifest.sha256(stage) != sha256:
            _tell_of_other_weights(run / PREDICTION_FILE, manifest.folder(stage))
            continue
        _write_scalars(
            manifest, stage, {f"{name}_given_{one.given}_{split}": mean.value for one, name, mean in found if one.prediction == MODEL}
        )
        _add_to_card(manifest, stage, sha256, entries)


def _digest(card: MetricCard) -> str:
    """Return the beginning of a hash of the protocol and of everything that the generated clips are made by."""
    counted = ("clips", "left_out", "unreadable", "run")
    made = {name: value for name, value in card.generated.items() if name not in counted}
    return hashlib.sha256(canonical_json({"protocol": card.protocol, "generated": made}).encode()).hexdigest()[:8]


def _origin(card: MetricCard) -> str:
    """Return what tells figures of the same clips apart: metric, its settings and extractor."""
    return canonical_json({"metric": card.metric, "settings": card.settings, "extractor": card.extractor})


def render_cards(cards: Sequence[MetricCard]) -> Table:
    """Return figures as a table for the terminal."""
    table = Table(*CARD_COLUMNS)
    for card in cards:
        table.add_row(*map(Text, card_cells(card)))
    return table


def _weights(card: MetricCard, stage: str) -> str | None:
    """Return the hash of the weights of a stage that a card names; None if it names none."""
    artifact = card.generated.get("artifacts", {}).get(stage, {})
    return artifact.get("sha256") if isinstance(artifact, dict) else artifact


def _entry(card: MetricCard, file: Path) -> dict[str, Any]:
    """Return the entry of a figure for the artifact's card; the file has all the rest."""
    return {
        "metric": card.metric,
        "value": card.value,
        "preset": card.preset,
        "error": card.error.standard_error,
        "extractor": card.extractor.get("kind"),
        "extractor_sha256": card.extractor.get("sha256"),
        **{name: card.generated[name] for name in ("guidance", "steps", "seed") if name in card.generated},
        "file": file.as_posix(),
    }


def _add_to_card(manifest: Manifest, stage: str, sha256: str, entries: Sequence[dict[str, Any]]) -> None:
    folder = manifest.folder(stage)
    if not folder.resolve().is_relative_to(manifest.run_dir.resolve()):
        _tell(f"{folder} is an artifact of another place: its card is left as it is")
        return
    try:
        add_evaluations(folder, sha256, entries)
        manifest.usable([stage], allow_stale=True)  # it records size and time of the card, so that it is not read each time
    except (OSError, ValueError) as error:
        _tell(f"the card of {folder} gets no figures ({error})")


def _write_scalars(manifest: Manifest, stage: str, values: Mapping[str, float]) -> None:
    """Write figures as TensorBoard scalars at the step of the artifact."""
    logs = manifest.run_dir / "training" / stage / "logs" / LOGS
    try:
        # Imported here: it takes a second, and a run can be evaluated without it.
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _tell("no curves of the metrics: tensorboard is not installed (pip install tensorboard)")
        return
    try:
        step = int(read_card(manifest.folder(stage))["steps"])
        with SummaryWriter(str(logs)) as writer:
            for tag, value in values.items():
                writer.add_scalar(f"metrics/{tag}", value, step)
    except (OSError, ValueError) as error:
        _tell(f"no curves of the metrics in {logs} ({error})")


def _tell_of_other_weights(file: Path, folder: Path) -> None:
    _tell(f"{file} is written, but {folder} was trained again meanwhile: its card and the curves get no figures of other weights")


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr)
