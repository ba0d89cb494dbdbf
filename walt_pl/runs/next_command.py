"""The commands to type after a stage is done."""

import re
import shlex

from walt_pl.runs.card import CONFIG
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
    bases = [name for name in states if kind_of(name) == "base"]
    if not bases:
        return f"python -m walt_pl evaluate {shlex.quote(str(manifest.run_dir))}"
    return sample_command(manifest, bases[0])


def sample_command(manifest: Manifest, base: str) -> str:
    """Return the command that samples from a run, with the condition that its base model cannot do without.

    Args:
        manifest: of the run.
        base: stage of the base model, which is trained.
    """
    config = manifest.folder(base) / CONFIG
    option = condition_option((read_yaml(config) or {}) if config.is_file() else {})
    return f"python -m walt_pl sample --run {shlex.quote(str(manifest.run_dir))} {option}"


def _stages(manifest: Manifest) -> list[str]:
    """Return the stages of the manifest and those of the experiment's main chain, in the order of training."""
    found = list(manifest.stages())
    chain = [path.stem for path in manifest.experiment_folder().glob("*.yaml") if re.fullmatch(r"vae|base|sr\d+", path.stem)]
    kinds = {kind_of(name) for name in found}
    return in_order([*found, *(name for name in chain if name not in found and (name != "base" or "base" not in kinds))])
