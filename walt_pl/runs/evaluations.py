"""Figures of a finished stage in the card of its artifact: `metrics.evaluations`, a short entry for each card of a metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from walt_pl.files import remove_left_overs, write_whole
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.runs.card import CARD, EVALUATIONS, MODEL_CARD, ArtifactError, card_text, read_card
from walt_pl.runs.card_entries import check_card
from walt_pl.runs.model_card import write_model_card

KEPT = 100
"""Entries of a card. Further ones take the place of the oldest, so that a card stays small."""
KEY = ("metric", "preset", "extractor", "extractor_sha256", "task", "prediction", "split", "index_sha256", "file")
"""Fields by which a new entry replaces an old one."""


def add_evaluations(folder: Path, sha256: str, entries: Sequence[dict[str, Any]]) -> None:
    """Add figures to the card of an artifact. An older entry of equal `KEY` is replaced.

    The model card shows them, too.

    The hash of the weights, by which children know their parent, and the hash that manifests record of the card stay as they are.

    Args:
        folder: folder of the artifact.
        sha256: hash of the weights that were evaluated.
        entries: plain values of each figure, with the fields of `KEY`.

    Raises:
        ArtifactError: the folder is not an artifact, or its weights are others by now.
        ValueError: an entry is not plain, or another process holds the artifact.
        OSError: the card cannot be written.
    """
    with hold_lock(lock_beside(folder.resolve()), wait=60.0):
        for name in (CARD, MODEL_CARD):
            remove_left_overs(folder / name)
        card = read_card(folder)
        if card["sha256"] != sha256:
            raise ArtifactError(f"{folder} was trained again since: its weights are {card['sha256'][:12]}, evaluated were {sha256[:12]}")
        metrics = card.get("metrics", {})
        older = metrics.get(EVALUATIONS)
        new = {_key(entry) for entry in entries}
        kept = [entry for entry in older if isinstance(entry, dict) and _key(entry) not in new] if isinstance(older, list) else []
        metrics = {name: value for name, value in metrics.items() if name != EVALUATIONS}
        card = {**card, "metrics": {**metrics, EVALUATIONS: [*kept, *entries][-KEPT:]}}
        check_card(card, str(folder / CARD))
        write_whole(folder / CARD, card_text(card).encode())
        write_model_card(folder)


def _key(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(repr(entry.get(name)) for name in KEY)
