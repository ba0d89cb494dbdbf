"""Keys of a configuration with their types, defaults and texts: the one source of `walt fit --help` and of docs/CONFIGURATION.md.

The texts are those of docstrings. jsonargparse reads them, as it does for the parser.
"""

import argparse
import dataclasses
import re
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

UNIONS = (Union, types.UnionType)
SKIPPED = ("help", "print_config")
"""Options that are no keys of a configuration."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    name: str
    """Dotted name, as it is typed after two dashes."""
    hint: Any
    """Annotation of its type; None if any text is accepted."""
    default: Any
    required: bool
    text: str
    """Explanation of its docstring."""

    @property
    def choices(self) -> list[type]:
        """Dataclasses that a value may be, of several. The fields of the chosen one are further keys below this one."""
        return [kind for kind in _members(self.hint) if dataclasses.is_dataclass(kind) and isinstance(kind, type)]


def parser_keys(parser: argparse.ArgumentParser) -> list[Key]:
    """Return the keys of a parser in its order. Groups of keys are none themselves."""
    found = []
    for action in parser._actions:
        hint = getattr(action, "_typehint", action.type)
        is_key = hint is not None or action.dest == "config"
        if not is_key or not action.option_strings or action.dest.split(".")[-1] in SKIPPED:
            continue
        # jsonargparse marks required options itself; argparse would not find them in a config.
        required = action.dest == "config" or action.dest in getattr(parser, "required_args", ()) or bool(action.required)
        default = None if action.default == argparse.SUPPRESS else action.default
        found.append(Key(action.dest, hint, default, required, " ".join((action.help or "").split())))
    return found


def group_titles(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the first lines of the docstrings of the classes whose arguments a parser has, by the first part of their keys."""
    groups = [(action.dest, group.title) for group in parser._action_groups for action in group._group_actions]
    return {dest.partition(".")[0]: title for dest, title in groups if "." in dest and title is not None}


def class_keys(kind: Callable[..., Any], prefix: str) -> list[Key]:
    """Return the keys of a class: the arguments of its constructor, with those of a nested dataclass in its place.

    Args:
        kind: a stage, a callback, a dataclass or an optimiser.
        prefix: key of the class itself.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the text under a field of a dataclass
    parser = ArgumentParser()
    parser.add_class_arguments(kind, prefix, skip={"params"})  # an optimiser gets its parameters from the stage
    return parser_keys(parser)


def render_type(hint: Any) -> str:
    """Return a type in the notation of values: `int | null`, `[int, int]`, `cosine | constant`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in UNIONS or origin is Literal:
        return " | ".join(dict.fromkeys(_alternatives(hint)))
    if origin in (tuple, list):
        return f"[{', '.join('...' if one is Ellipsis else render_type(one) for one in arguments)}{', ...' if origin is list else ''}]"
    if origin is dict:
        return f"{{{render_type(arguments[0])}: {render_type(arguments[1])}}}"
    if hint is None:
        return "text"
    if hint is types.NoneType:
        return "null"
    return "class" if origin is not None else getattr(hint, "__name__", str(hint))


def _alternatives(hint: Any) -> list[str]:
    """Return the types of a union and the values of a Literal, also of those within a union."""
    if get_origin(hint) in UNIONS:
        return [text for one in get_args(hint) for text in _alternatives(one)]
    return list(map(str, get_args(hint))) if get_origin(hint) is Literal else [render_type(hint)]


def render_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()


def first_sentence(text: str) -> str:
    """Return the first sentence of a library's text, without its default."""
    short = re.split(r"(?<=[\w)`'\"])\.\s|\s*\(?[Dd]efault: ", text, maxsplit=1)[0].rstrip(".")
    short = re.sub(r"(:\w+:)?(`+)~?([^`]+)\2", r"`\3`", short)  # marks of Sphinx
    return f"{short}." if short else ""


def sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning, unless that is a name of the code."""
    return text if "." in text.partition(" ")[0] else text[:1].upper() + text[1:]


def _members(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in UNIONS else [hint]


def _plain(value: Any) -> Any:
    """Return a value with lists in place of tuples, and text in place of paths and objects."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, dict | str | int | float | bool | None) else str(value)
