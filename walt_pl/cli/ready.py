"""Check what a training needs, in about a second and before any work: ``walt ready`` (options of `fit`; imports no torch)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from walt_pl.cli.config_files import extended_files, parse_known
from walt_pl.cli.config_syntax import read_config
from walt_pl.runs.manifest import RUNS, Manifest
from walt_pl.runs.stage_names import parents_of


def ready(words: Sequence[str]) -> None:
    """Check that the parents of a stage are finished, as `fit` does later. Nothing is printed if they are.

    A parent that an option or a config names is left to `fit`, and so is a command line without a stage.

    Args:
        words: words of `walt fit`. Options other than those of the run, the stage and its parents are ignored.

    Raises:
        ManifestError: a parent is missing, changed on disk or stale. The message ends with the command that trains it.
    """
    typed = _parse(words)
    configs = [Path(name) for name in typed.config]
    plain = [read_config(path) for config in configs for path in (*extended_files(config), config)]
    stage = typed.stage or _last(plain, "stage") or (configs[0].stem if configs else None)
    run = typed.run or _last(plain, "run") or (RUNS / configs[0].resolve().parent.name if configs else None)
    if stage is None or run is None:
        return
    if any(_names_parent(model, parent) for model in [vars(typed), *(_arguments(one) for one in plain)] for parent in parents_of(stage)):
        return
    stale = typed.allow_stale or _last(plain, "allow_stale") or False
    Manifest.open(run, configs[0].parent if configs else None).check_parents(stage, allow_stale=str(stale).lower() == "true")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    about = "Check that the stages that a stage is trained from are finished. All other options of fit are ignored."
    parser = argparse.ArgumentParser("walt ready", description=about, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[], help="file of the stage, experiments/EXP/STAGE.yaml")
    parser.add_argument("--run", help="folder of the run; runs/EXP when not given")
    parser.add_argument("--stage", help="name of the stage; the name of the first config when not given")
    parser.add_argument("--allow_stale", nargs="?", const="true", help="true accepts parents that are stale")
    for parent in ("vae", "base"):
        parser.add_argument(f"--model.{parent}", f"--model.init_args.{parent}", dest=parent, help="is checked by fit")
    return parse_known(parser, words)


def _last(plain: Sequence[dict[str, Any]], key: str) -> Any:
    """Return the value of a key in the last config that has it."""
    return next((config[key] for config in reversed(plain) if config.get(key) is not None), None)


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the model in a config file."""
    model = config.get("model")
    arguments = model.get("init_args", model) if isinstance(model, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _names_parent(arguments: dict[str, Any], parent: str) -> bool:
    return isinstance(arguments.get(parent), str)  # in the config of an autoencoder, vae is its size


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt ready`."""
    ready(words)
