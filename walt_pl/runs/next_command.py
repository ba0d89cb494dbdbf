"""The command to type after a stage is done."""

import re
import shlex
from pathlib import Path

from walt_pl.runs.card import CONFIG
from walt_pl.runs.experiment_files import EXPERIMENTS, find_experiment
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.sample_condition import condition_option
from walt_pl.runs.stage_names import in_order, kind_of
from walt_pl.untrusted import read_yaml


def next_command(manifest: Manifest) -> str:
    """Return the command that trains the next stage of a run, or samples from it when all of its stages are done.

    The stages are those of the manifest and of the experiment. A base of another name, such as base_l, counts as the base. Stages in
    training are left out.
    """
    states = {name: manifest.state(name) for name in _stages(manifest)}
    waiting = [name for name, state in states.items() if state not in ("done", "training")]
    if waiting:
        return manifest.command(waiting[0])
    run = shlex.quote(str(manifest.run_dir))
    bases = [name for name in states if kind_of(name) == "base"]
    if not bases:
        return f"python -m walt_pl evaluate {run}"
    config = manifest.folder(bases[0]) / CONFIG
    return f"python -m walt_pl sample --run {run} {condition_option((read_yaml(config) or {}) if config.is_file() else {})}"


def _stages(manifest: Manifest) -> list[str]:
    """Return the stages of the manifest and those of the experiment's main chain, in the order of training."""
    found = list(manifest.stages())
    folder: Path = manifest.experiment or find_experiment(EXPERIMENTS / manifest.run_dir.resolve().name)
    chain = [path.stem for path in folder.glob("*.yaml") if re.fullmatch(r"vae|base|sr\d+", path.stem)]
    kinds = {kind_of(name) for name in found}
    return in_order([*found, *(name for name in chain if name not in found and (name != "base" or "base" not in kinds))])
