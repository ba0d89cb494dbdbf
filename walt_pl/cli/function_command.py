"""Parse the words of a command that is a plain function: its signature and docstring are the options and their help."""

import inspect
import keyword
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError, auto_parser


def call(function: Callable[..., None], words: Sequence[str]) -> None:
    """Call a function with the options of a command line.

    Args:
        function: arguments without default are positional; their names are the options. `continue_` is typed --continue.
        words: words after the command.

    Raises:
        ValueError: an option is unknown, missing or has a wrong value.
    """
    parser = auto_parser(function, as_positional=True, prog=f"walt {function.__name__}", exit_on_error=False, allow_abbrev=False)
    try:
        options = parser.parse_args(_expand(words, function))
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    # auto_cli is not used: it would consume a command's own --config.
    function(**{name: options[name] for name in inspect.signature(function).parameters})


def _expand(words: Sequence[str], function: Callable[..., None]) -> list[str]:
    """Return the words as the parser wants them: --report becomes --report=true, and --continue becomes --continue_."""
    parameters = inspect.signature(function).parameters
    expanded = []
    for place, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and keyword.iskeyword(name):
            word = f"--{name}_{equals}{value}"
        bare = word.startswith("--") and not equals and name in parameters and parameters[name].annotation in (bool, "bool")
        expanded.append(f"{word}=true" if bare and words[place + 1 : place + 2] not in (["true"], ["false"]) else word)
    return expanded
