"""Write the artifacts of a run again in another type, as a run of their own, for `walt export RUN --dtype bfloat16`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from walt_pl.runs.artifact import COMPONENTS, Artifact, load
from walt_pl.runs.artifact_writing import GIVEN, OWN_FACTS, save_artifact
from walt_pl.runs.card import EVALUATIONS, EXTRA, TRAIN, ArtifactError, check_replaceable
from walt_pl.runs.manifest import Manifest
from walt_pl.untrusted import MAX_YAML_BYTES, read_bytes


def export_run(run: Path, out: Path) -> dict[str, str]:
    """Round the weights of each finished stage of a run to bfloat16.

    The new artifacts name each other as parents, by their new hashes, so that the folder is a run of its own.

    Args:
        run: folder of the run.
        out: folder of the new run. Artifacts of its stages are replaced.

    Returns:
        Stage -> sha256 of its new weights.

    Raises:
        ValueError: the run has no finished stage, a stage is stale, or `out` is the run itself or holds something else.
        NonFiniteError: a weight is beyond the largest number of bfloat16.
    """
    source, made = Manifest.open(run), Manifest.open(out)
    names = [name for name, stage in source.stages().items() if stage.artifact is not None]
    if not names:
        raise ValueError(f"export: {run} has no finished stage")
    if out.resolve() == run.resolve():
        raise ValueError(f"export: --out {out} is the run itself, whose weights would be lost: name another folder")
    folders = source.usable(names)
    for name in names:
        if folders[name].resolve() == (out / name).resolve():
            raise ArtifactError(f"export: {out / name} is the artifact that {run} uses: name another folder with --out")
        made.check_free(name)
        check_replaceable(out / name)
    hashes: dict[str, str] = {}
    for name in names:
        artifact = load(folders[name], verify=True)
        hashes[name] = save_artifact(
            out / name,
            kind=artifact.kind,
            models=artifact.models,
            sampling_config={section: fields for section, fields in artifact.config.items() if section not in COMPONENTS},
            card=_convert_card(artifact, {parent: hashes[parent] for parent in artifact.card["parents"]}),
            train_config=read_bytes(artifact.path / TRAIN, MAX_YAML_BYTES).decode(),
            files={extra: artifact.read(extra) for extra in EXTRA if extra in artifact.card["files"]},
            dtype=torch.bfloat16,
        )
        made.finish(name, out / name)
    return hashes


def _convert_card(artifact: Artifact, parents: dict[str, str]) -> dict[str, Any]:
    """Return the entries of the card for rounded weights. Figures of evaluations are left out: they are of the weights before."""
    card = {name: artifact.card[name] for name in (*GIVEN, *OWN_FACTS) if name in artifact.card}
    metrics = {name: value for name, value in card["metrics"].items() if name != EVALUATIONS}
    if "protocol" in metrics:
        metrics["protocol"] = f"{metrics['protocol']}; before the weights were rounded to bfloat16"
    return {**card, "parents": parents, "metrics": metrics, "converted_from": artifact.sha256}
