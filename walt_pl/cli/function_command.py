"""Parse the words of a command that is a plain function: its signature and docstring are the options and their help."""

import functools
import inspect
import keyword
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, auto_parser

from walt_pl.cli.parse_errors import CommandLine, explain


def call(function: Callable[..., None], words: Sequence[str], **given: Any) -> None:
    """Call a function with the options of a command line.

    Args:
        function: arguments without default are positional; their names are the options. `continue_` is typed --continue.
        words: words after the command.
        given: keyword-only arguments, which are no options.

    Raises:
        ValueError: an option is unknown, missing or has a wrong value.
    """
    parser = parser_of(function)
    try:
        options = parser.parse_args(_expand(words, function))
    except ArgumentError as error:
        raise ValueError(explain(error, CommandLine(function.__name__.rstrip("_"), parser, words))) from error
    # auto_cli is not used: it would consume a command's own --config.
    function(**{name: options[name] for name in inspect.signature(_with_options_alone(function)).parameters}, **given)


def parser_of(function: Callable[..., None]) -> ArgumentParser:
    """Return the parser of a function's options, see `call`."""
    parser = auto_parser(
        _with_options_alone(function),
        as_positional=True,
        prog=f"walt {function.__name__.rstrip('_')}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    for action in parser._actions:
        # A keyword of Python cannot name an argument. argparse has no public way to rename an option and keep its destination.
        if action.dest.endswith("_") and keyword.iskeyword(action.dest[:-1]):
            typed = f"--{action.dest[:-1]}"
            parser._option_string_actions[typed] = parser._option_string_actions.pop(f"--{action.dest}")
            action.option_strings = [typed]
            action.metavar = action.dest[:-1].upper()
    return parser


def _with_options_alone(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function with the same name and docstring, and without keyword-only arguments."""

    @functools.wraps(function)
    def options(**_: Any) -> None: ...

    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.KEYWORD_ONLY]
    vars(options).pop("__wrapped__")  # jsonargparse would look behind it
    vars(options)["__signature__"] = signature.replace(parameters=kept)
    return options


def _expand(words: Sequence[str], function: Callable[..., None]) -> list[str]:
    """Return the words as the parser wants them: --report becomes --report=true."""
    parameters = inspect.signature(function).parameters
    expanded = []
    for place, word in enumerate(words):
        name, equals, _ = word.removeprefix("--").partition("=")
        bare = word.startswith("--") and not equals and name in parameters and parameters[name].annotation in (bool, "bool")
        expanded.append(f"{word}=true" if bare and words[place + 1 : place + 2] not in (["true"], ["false"]) else word)
    return expanded
