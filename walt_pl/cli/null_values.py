"""The parser of configured classes: it reads null at any depth, and names the cause when a class refuses its arguments.

jsonargparse sets a nested key such as --model.denoiser.num_classes in a parser of its own, and hands the value over as text:
`f"--{key}={value}"`. A null has become None by then, and its text is "None". That parser takes it for a word. It is corrected here, in
such inner parsers alone. Values of the outer keys (--run, --data.vae, --ema.decay) never pass through this text.

One word cannot be told apart: `--model.vae None` is null, too. A folder of this name is typed ./None.
"""

import ast
import json
from collections.abc import Sequence
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from walt_pl.cli.error_causes import cause_of


class ClassParser(ArgumentParser):
    """A parser with null values at any depth and the errors of our own classes."""

    def parse_args(self, args: Sequence[str] | None = None, *positional: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        if getattr(self, "_inner_parser", False) and args is not None:
            args = [self._restore_nulls(word) for word in args]
        return super().parse_args(args, *positional, **kwargs)

    def instantiate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().instantiate(*args, **kwargs)
        except (TypeError, ValueError) as error:
            cause = cause_of(error)
            if cause is None:
                raise
            raise cause from None

    # LightningCLI calls it by its old name, which warns.
    instantiate_classes = instantiate

    def _restore_nulls(self, word: str) -> str:
        """Return a word --KEY=VALUE whose value is Python's text of an object, with YAML's null in place of None."""
        key, _, text = word.partition("=")
        if text == "None":
            return f"{key}=null" if self._takes_null(key.removeprefix("--")) else word
        if text[:1] not in ("[", "{") or "None" not in text:
            return word
        try:
            return f"{key}={json.dumps(ast.literal_eval(text))}"
        except (ValueError, SyntaxError, TypeError):
            return word

    def _takes_null(self, key: str) -> bool:
        """Return whether a key takes null. A key within another class is left to the parser of that class."""
        hint = next((getattr(action, "_typehint", None) for action in self._actions if action.dest == key), None)
        return hint is None or type(None) in get_args(hint)
