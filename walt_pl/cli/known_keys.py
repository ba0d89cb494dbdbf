"""List the keys that a parser accepts, those of the chosen classes included, and say in plain words what each takes."""

import dataclasses
import importlib
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from walt_pl.cli.config_syntax import entries

WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "values true or false"),
    str: ("text", "texts"),
    type(None): ("null", "nulls"),
}
"""One of a type, and several."""


def known_keys(parser: ArgumentParser, words: Sequence[str] = (), configs: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the type of each key, by its name as it is typed after two dashes.

    Args:
        parser: of the command.
        words: of the command line; they and the configs choose classes, such as the stage and its optimiser.
        configs: the lowest first.
    """
    keys = _keys_of(parser)
    for key, path in sorted(_chosen_classes(words, configs).items()):
        if key in keys:
            keys |= {f"{key}.{name}": hint for name, hint in _class_keys(path).items()}
    return keys


def describe_type(hint: Any, several: bool = False) -> str:
    """Return a type in plain words: "a whole number or null", or "whole numbers" for several."""
    if hint in WORDS:
        return WORDS[hint][several]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        choices = [choice for one in arguments if get_origin(one) is Literal for choice in get_args(one)]
        rest = [one for one in arguments if get_origin(one) is not Literal and not (choices and one is str)]
        named = [f"one of {', '.join(dict.fromkeys(map(str, choices)))}"] if choices else []
        return _join([*named, *dict.fromkeys(describe_type(one, several) for one in sorted(rest, key=lambda one: one is type(None)))])
    if origin in (list, tuple, set) or origin in (Sequence, Iterable):
        count = "" if origin is not tuple or Ellipsis in arguments else f"{len(arguments)} "
        inside = describe_type(arguments[0], True) if arguments else "values"
        return f"{'lists' if several else 'a list'} of {count}{inside}"
    if origin in (dict, Mapping):
        return f"names with {describe_type(arguments[1], True)}: '{{NAME: VALUE}}'" if arguments else "names with values"
    if dataclasses.is_dataclass(hint):
        return f"keys such as {', '.join(field.name for field in dataclasses.fields(hint)[:3])}"
    if origin is Callable:
        return "classes with their modules" if several else "a class with its module, such as torch.optim.AdamW"
    if hasattr(hint, "_expression"):
        return _restricted(hint)
    name = getattr(hint, "__name__", str(hint))
    return f"{name} classes" if several else f"a class with its module, of the kind {name}"


def takes_null(hint: Any) -> bool:
    """Return whether a key of this type may be null."""
    return hint is None or hint is Any or hint is type(None) or any(takes_null(one) for one in get_args(hint) if one is type(None))


def _restricted(hint: Any) -> str:
    """Return the words of jsonargparse's restricted numbers, such as PositiveFloat."""
    limit = hint._expression.replace("v", "").replace(">=", "of at least ").replace(">", "above ").replace("<", "below ")
    return f"{WORDS[float if issubclass(hint, float) else int][0]} {limit}"


def _join(parts: Iterable[str]) -> str:
    return " or ".join(parts)


def _keys_of(parser: Any) -> dict[str, Any]:
    """Return the keys of a parser's options. jsonargparse has no public list of them."""
    keys: dict[str, Any] = {}
    for action in parser._actions:
        for option in action.option_strings:
            key = option.removeprefix("--")
            if option.startswith("--") and key.split(".")[-1] != "help" and not key.endswith("+"):
                hint = getattr(action, "_typehint", action.type)
                keys |= {key: hint, **{f"{key}.{name}": inner for name, inner in _dataclass_keys(hint)}}
    return keys


def _dataclass_keys(hint: Any) -> Iterable[tuple[str, Any]]:
    """Yield the fields of the dataclasses among the alternatives of a type."""
    for one in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ():
        if dataclasses.is_dataclass(one) and isinstance(one, type):
            yield from get_type_hints(one).items()


def _class_keys(path: str) -> dict[str, Any]:
    """Return the keys of a class's arguments; none if the class cannot be found, which is an error of its own."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(found, skip={"params"})  # an optimiser gets the parameters from its stage
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    return {key: hint for key, hint in _keys_of(parser).items() if key not in ("config", "print_config")}


def _chosen_classes(words: Sequence[str], configs: Sequence[Path]) -> dict[str, str]:
    """Return the class path that configs and words choose for each key."""
    found: dict[str, str] = {}
    values = [(entry.key, entry.value) for config in configs for entry in entries(config)]
    values += [(word.removeprefix("--").replace(".init_args", ""), value) for word, value in typed_values(words)]
    for key, value in values:
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value):
            found[key.removesuffix(".class_path")] = value
    return found


def typed_values(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a command line with their values, as (--KEY, VALUE); "" for an option without a value."""
    typed = []
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            typed.append((option, value if equals else "" if after.startswith("--") else after))
    return typed
