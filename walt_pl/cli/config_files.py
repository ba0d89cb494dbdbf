"""Resolve the key ``extends``: the config files that lie under a configuration."""

import argparse
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from walt_pl.runs.experiment_files import find_experiment
from walt_pl.runs.stage_names import NAMES, ManifestError, in_order, kind_of

CONFIG_FLAGS = ("-c", "--config")


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line with the paths of configs that are installed with the program in place of those typed."""
    found = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = word.partition("=")
        if flag in CONFIG_FLAGS and equals:
            word = f"{flag}={find_experiment(Path(value))}"
        elif before in CONFIG_FLAGS:
            word = str(find_experiment(Path(word)))
        found.append(word)
    return found


def extended_by_first_config(arguments: Sequence[str]) -> list[str]:
    """Return the files that the first config of a command line extends, as patterns for jsonargparse's default_config_files.

    Raises:
        ValueError: the first config is not that of a stage, and neither --stage nor a config names the stage.
    """
    configs, stage = _parse_typed(arguments)
    if not configs:
        return []
    first = configs[0]
    if first.is_file() and not stage and not any("stage" in read_plain(config) for config in configs):
        try:
            kind_of(first.stem)
        except ManifestError as error:
            raise ValueError(
                f'unknown stage "{first.stem}", the name of the first --config: wanted {NAMES}; an overlay comes second '
                f"(--config STAGE.yaml --config {first.name}), or give --stage NAME"
            ) from error
    return [glob.escape(str(path)) for path in extended_files(first)]


def configs_of(arguments: Sequence[str]) -> list[Path]:
    """Return the configuration files of a command line and those that the first one extends, the lowest first."""
    configs, _ = _parse_typed(arguments)
    return [*extended_files(configs[0]), *configs] if configs else []


def _parse_typed(arguments: Sequence[str]) -> tuple[list[Path], str | None]:
    """Return the values of --config and of --stage."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(*CONFIG_FLAGS, action="append", default=[], type=Path)
    parser.add_argument("--stage")
    typed = parser.parse_known_args(arguments)[0]
    return typed.config, typed.stage


def stages_of(experiment: Path) -> list[str]:
    """Return the stages of an experiment's main chain in order: vae, base, sr1, sr2, ..., without variants such as base_l."""
    return in_order([path.stem for path in experiment.glob("*.yaml") if re.fullmatch(r"vae|base|sr\d+", path.stem)])


def read_plain(config: Path) -> dict[str, Any]:
    """Return the content of a config file. A file that cannot be read gives {}; the parser then reports its error."""
    try:
        plain = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return plain if isinstance(plain, dict) else {}


def extended_files(config: Path) -> list[Path]:
    """Return the files that a config extends, the lowest first: those in its key ``extends``, and those that they extend.

    Raises:
        ValueError: one of them does not exist.
    """
    files: list[Path] = []
    for name in read_plain(config).get("extends") or []:
        below = find_experiment(config.parent / str(name))
        if not below.is_file():
            raise ValueError(f"{config}: extends names {name}, but there is no {below}; paths are relative to the file that names them")
        files += [*extended_files(below), below]
    return files
