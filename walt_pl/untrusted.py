"""Read small files that a stranger may have written: plain files only, bounded in bytes, depth and number of values.

JSON and YAML from artifacts, checkpoints, manifests, caches and data sets are parsed here and nowhere else. Only plain values are built:
mappings, lists, text, numbers, booleans and null.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MAX_JSON_BYTES = 64 << 20
"""Bytes of a JSON file. `meta.json` of a cache may be larger: its limit grows with the rows, since each may have a reason."""
MAX_YAML_BYTES = 1 << 20
"""Bytes of a YAML file. The largest is a `model.yaml` with the 21,841 class names of ImageNet-21k, of about 650 KB."""
MAX_DEPTH = 40
"""Depth of nested mappings and lists."""
MAX_YAML_VALUES = 50_000
"""Values of a YAML file, with every alias counted as often as it is used."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml is ten times as fast: 1 MB in 0.3 s."""


class UntrustedError(ValueError):
    """A file is no plain file, too large, or its content is not what the format allows. The message is one sentence."""


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Open a plain file for reading, without following a link.

    A pipe would wait for ever, and a link may lead to any file. The caller limits what it reads.

    Args:
        path: path of the file. Its folders may be links.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedError: it is a link, pipe or device, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ELOOP: a link; ENXIO: a socket; ValueError: a null byte in the name
        raise UntrustedError(f"{path} is not a plain file that can be read ({error})") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UntrustedError(f"{path} is not a plain file")
    with os.fdopen(handle, "rb") as file:
        yield file


def read_bytes(path: Path, most: int) -> bytes:
    """Read a plain file of limited size, see `open_plain`.

    Args:
        path: path of the file. Its folders may be links.
        most: largest number of bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedError: it is a link, pipe or device, is larger than `most`, or cannot be read.
    """
    with open_plain(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise UntrustedError(f"{path} cannot be read ({error})") from None
    if len(data) > most:
        raise UntrustedError(f"{path} has more than {most:,} bytes, the largest size of such a file")
    return data


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file, see `read_bytes` and `parse_json`.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedError: it is no plain file of limited size, or no JSON of limited depth.
    """
    return parse_json(read_bytes(path, most), str(path))


def read_yaml(path: Path) -> Any:
    """Read a YAML file, see `read_bytes` and `parse_yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedError: it is no plain file of limited size, or no YAML of limited size and depth.
    """
    return parse_yaml(read_bytes(path, MAX_YAML_BYTES), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the plain value of a JSON text.

    Args:
        text: the text, UTF-8 if it is bytes.
        where: file or row that the text comes from, for the error message.

    Raises:
        UntrustedError: it is no JSON, is nested deeper than `MAX_DEPTH`, or has text that is not Unicode (a lone surrogate).
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UntrustedError(f"{where}: JSON nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and integers of thousands of digits
        raise UntrustedError(f"{where} is not JSON ({error})") from None
    _check_plain(value, where)
    return value


def parse_yaml(text: str | bytes, where: str) -> Any:
    """Return the plain value of a YAML text.

    Args:
        text: the text.
        where: file that the text comes from, for the error message.

    Raises:
        UntrustedError: it is no YAML, is larger than `MAX_YAML_BYTES`, has more than `MAX_YAML_VALUES` values, is nested deeper than
            `MAX_DEPTH`, or has values that are not plain.
    """
    if len(text) > MAX_YAML_BYTES:
        raise UntrustedError(f"{where} has more than {MAX_YAML_BYTES:,} bytes, the largest size of a YAML file")
    loader = None
    try:
        _check_events(text, where)
        loader = _LOADER(text)
        node = loader.get_single_node()
        if node is None:
            return None
        check_nodes(node, where)
        value = loader.construct_document(node)
    except RecursionError:
        raise UntrustedError(f"{where}: YAML nested deeper than {MAX_DEPTH} levels") from None
    except UntrustedError:
        raise
    # Beside YAMLError: wrong dates (ValueError), lists as keys (TypeError), endless digits, unknown bytes.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UntrustedError(f"{where} is not YAML ({' '.join(str(error).split())[:200]})") from None
    finally:
        if loader is not None:
            loader.dispose()
    _check_plain(value, where)
    return value


def _check_events(text: str | bytes, where: str) -> None:
    """Check depth and size of a YAML text before its nodes are made: libyaml makes them recursively, and would crash.

    Raises:
        UntrustedError: it is nested deeper than `MAX_DEPTH`, or has more than `MAX_YAML_VALUES` values without what its aliases repeat.
    """
    depth = values = 0
    for event in yaml.parse(text, Loader=_LOADER):
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_YAML_VALUES:  # in time: to make the nodes of a megabyte first would take seconds
            raise UntrustedError(f"{where} has more than {MAX_YAML_VALUES:,} values, the most of a YAML file")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UntrustedError(f"{where}: YAML nested deeper than {MAX_DEPTH} levels")


def check_nodes(node: yaml.Node, where: str) -> None:
    """Check depth and number of the values below a YAML node, before any of them is built.

    Raises:
        UntrustedError: there are more than `MAX_YAML_VALUES` with every alias counted, they are nested too deep, or one contains itself.
    """
    count = _count(node, {}, 1, where)
    if count > MAX_YAML_VALUES:
        raise UntrustedError(f"{where} has {count:,} values with its aliases, at most {MAX_YAML_VALUES:,} wanted")


def _count(node: yaml.Node, known: dict[int, int], depth: int, where: str) -> int:
    """Return the number of values below a node, with every alias counted as often as it is used.

    Raises:
        UntrustedError: the nodes are nested too deep, or a node contains itself.
    """
    if depth > MAX_DEPTH:
        raise UntrustedError(f"{where}: YAML nested deeper than {MAX_DEPTH} levels")
    if id(node) not in known:
        known[id(node)] = -1  # until it is counted: an alias to it from within has no end
        children: Iterator[yaml.Node] = iter(())
        if isinstance(node, yaml.SequenceNode):
            children = iter(node.value)
        elif isinstance(node, yaml.MappingNode):
            children = (part for pair in node.value for part in pair)
        known[id(node)] = 1 + sum(_count(child, known, depth + 1, where) for child in children)
    if known[id(node)] < 0:
        raise UntrustedError(f"{where}: a YAML value contains itself")
    return known[id(node)]


def _check_plain(value: Any, where: str) -> None:
    """Check depth and types of a parsed value, without recursion.

    Raises:
        UntrustedError: it is nested too deep, has another type, or text that is not Unicode.
    """
    level = [value]
    for depth in range(MAX_DEPTH + 1):
        following: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                if depth == MAX_DEPTH:
                    raise UntrustedError(f"{where}: nested deeper than {MAX_DEPTH} levels")
                following += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                if depth == MAX_DEPTH:
                    raise UntrustedError(f"{where}: nested deeper than {MAX_DEPTH} levels")
                following += one
            elif isinstance(one, str):
                if not one.isascii():
                    _check_unicode(one, where)
            elif one is not None and type(one) not in (bool, int, float):
                raise UntrustedError(f"{where} has a value of type {type(one).__name__}, wanted plain values")
        level = following


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UntrustedError(f"{where} has text that is not Unicode: {text[:40]!a}") from None
