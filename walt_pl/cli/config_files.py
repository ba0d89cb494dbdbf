"""Resolve the key ``extends``: the config files that lie under a configuration."""

import argparse
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from walt_pl.cli.config_syntax import read_config
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
    if first.is_file() and not stage and not any("stage" in read_config(config) for config in configs):
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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*CONFIG_FLAGS, action="append", default=[], type=Path)
    parser.add_argument("--stage")
    typed = parse_known(parser, arguments)
    return typed.config, typed.stage


def parse_known(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options that a parser knows. The parser is made with `exit_on_error=False`, which avoids its usage text.

    Raises:
        ValueError: an option has no value.
    """
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise ValueError(f"{(error.argument_name or '').split('/')[-1]} needs a value ({error.message})") from error


def run_and_stage(options: Any) -> tuple[Path, str]:
    """Return the folder of the run and the name of the stage: experiments/EXP/STAGE.yaml is trained into runs/EXP/STAGE.

    Raises:
        ValueError: neither a config nor the options name them.
    """
    configs = [Path(str(path)) for path in options.config or []]
    if not configs and (options.run is None or options.stage is None):
        raise ValueError("which stage? give --config experiments/EXP/STAGE.yaml, or --run and --stage")
    run = Path(options.run) if options.run else Path("runs") / configs[0].resolve().parent.name
    return run, options.stage or configs[0].stem


def stages_of(experiment: Path) -> list[str]:
    """Return the stages of an experiment's main chain in order: vae, base, sr1, sr2, ..., without variants such as base_l."""
    return in_order([path.stem for path in experiment.glob("*.yaml") if re.fullmatch(r"vae|base|sr\d+", path.stem)])


def extended_files(config: Path) -> list[Path]:
    """Return the files that a config extends, the lowest first: those in its key ``extends``, and those that they extend.

    Raises:
        ValueError: one of them does not exist, or a file is no YAML.
    """
    files: list[Path] = []
    names = read_config(config).get("extends") or []
    if not isinstance(names, list):
        raise ValueError(f"{config}: extends: found {names}, wanted a list of files: extends: [{names}]")
    for name in names:
        below = find_experiment(config.parent / str(name))
        if not below.is_file():
            raise ValueError(f"{config}: extends names {name}, but there is no {below}; paths are relative to the file that names them")
        files += [*extended_files(below), below]
    return files
