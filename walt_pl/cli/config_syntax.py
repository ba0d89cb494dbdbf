"""Read the text of a config file: its keys with their lines, and what is wrong with it as YAML."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from walt_pl.untrusted import check_nodes


@dataclass(frozen=True)
class Entry:
    """A key of a config file, or a group of keys."""

    key: str
    """Dotted, without `init_args`, as it is typed after two dashes."""
    line: int
    value: Any


def read_config(config: Path) -> dict[str, Any]:
    """Return the content of a config file.

    Raises:
        ValueError: the file is missing, a folder, no text, no YAML, has a key twice, or has no keys. The message names file and line.
    """
    node, loader = _compose(config)
    try:
        return dict(loader.construct_document(node))
    except yaml.YAMLError as error:  # a tag that asks for an object of Python
        raise ValueError(_describe_yaml_error(config, error)) from error


def entries(config: Path) -> list[Entry]:
    """Return all keys of a config file and their groups, in the order of the file.

    Raises:
        ValueError: as `read_config`.
    """
    node, loader = _compose(config)
    return list(_walk(node, "", loader))


def _walk(node: yaml.MappingNode, prefix: str, loader: yaml.SafeLoader) -> Iterator[Entry]:
    for name, value in node.value:
        inside = name.value == "init_args"
        key = prefix if inside else f"{prefix}.{name.value}" if prefix else str(name.value)
        if not inside:
            yield Entry(key, name.start_mark.line + 1, loader.construct_object(value, deep=True))
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, key, loader)


def _compose(config: Path) -> tuple[yaml.MappingNode, yaml.SafeLoader]:
    """Return the nodes of a config file, and the loader that makes values of them."""
    loader = yaml.SafeLoader(_read_text(config))
    try:
        node = loader.get_single_node()
        if node is not None:
            check_nodes(node, str(config))  # nested aliases of a few lines have no end
    except yaml.YAMLError as error:
        raise ValueError(_describe_yaml_error(config, error)) from error
    except RecursionError as error:
        raise ValueError(f"{config}: nested deeper than YAML is read") from error
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ValueError(f"{config}: found {found}, wanted keys such as model, data and trainer (see experiments/shapes/vae.yaml)")
    _check_duplicates(config, node)
    loader.flatten_mapping(node)
    return node, loader


def _read_text(config: Path) -> str:
    if config.is_dir():
        raise ValueError(f"--config {config} is a folder; name one of its files: {_names(config)}")
    if not config.exists():
        near = difflib.get_close_matches(config.name, _files(config.parent), n=3)
        meant = " or ".join(str(config.with_name(name)) for name in near)
        there = f"did you mean {meant}?" if near else f"there are: {_names(config.parent)}"
        raise ValueError(f"--config {config}: there is no such file; {there}")
    try:
        return config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {config}: found bytes that are no text, wanted a YAML file in UTF-8") from error


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.yaml"))


def _names(folder: Path) -> str:
    return ", ".join(_files(folder)) or f"no .yaml in {folder}"


def _describe_yaml_error(config: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{config}: no YAML: {' '.join(str(error).split())}"
    line = config.read_text(encoding="utf-8").splitlines()[mark.line : mark.line + 1]
    if line and "\t" in line[0][: len(line[0]) - len(line[0].lstrip())]:
        return f"{config}:{mark.line + 1}: found a tab at the beginning of the line, wanted spaces: YAML indents with spaces"
    shown = f": {line[0].strip()}" if line and line[0].strip() else ""
    return f"{config}:{mark.line + 1}: no YAML{shown} ({getattr(error, 'problem', None) or 'cannot be read'})"


def _check_duplicates(config: Path, node: yaml.Node) -> None:
    """Refuse a key that comes twice in one mapping: YAML would silently use the last."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    first: dict[str, int] = {}
    for name, value in pairs:
        line = name.start_mark.line + 1
        if name.value in first and name.value != "<<":
            raise ValueError(f"{config}:{line}: {name.value} comes twice, first in line {first[name.value]}; remove one of them")
        first[name.value] = line
        _check_duplicates(config, value)
