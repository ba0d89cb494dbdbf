"""Commands in a form that may be handed around: without the folders of one machine."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from walt_pl.plain_records import MAX_TEXT
from walt_pl.runs.progress import is_fit_command
from walt_pl.terminal_text import CONTROL

_FOLDER = re.compile(r"(?<![\w/.~)\]}-])/(?!/(?!/))(?=\S).*/", re.DOTALL)
"""All of a value from its first absolute folder to its last slash, since folders may have spaces, commas and equal signs in their names.
Addresses such as https://host/ are left as they are."""
_ENTRIES = re.compile(r"""(?P<quote>["'])(?P<quoted>.*?)(?P=quote)|(?P<plain>[^\[\]{},"']+)""")
"""Entries of a list or mapping of YAML: quoted, or up to the next comma."""
_KEY = re.compile(r"\s*(?:[^\s:/]+:\s+)?")
"""Spaces and the key before an entry of a mapping."""


def portable_command(command: str) -> str:
    """Return a command of `fit` without absolute folders, see `portable_words`.

    Args:
        command: quoted as a shell wants it.

    Returns:
        The command; empty if it is no command of `fit`, or not one line of limited length.
    """
    if not is_fit_command(command) or CONTROL.search(command) or len(command) > MAX_TEXT:
        return ""
    return portable_words(shlex.split(command))


def portable_words(words: Sequence[str]) -> str:
    """Return the words of a command as one line, without absolute folders.

    A value that begins with the current folder becomes relative to it, and other folders become /path/to/: they name a user or a machine,
    and would lead nowhere on another one.
    """
    return shlex.join(map(_shorten_word, words))


def _shorten_word(word: str) -> str:
    name, equals, value = word.partition("=")
    if word.startswith("--") and equals:
        return f"{name}={_shorten_value(value)}"
    return _shorten_value(word)


def _shorten_value(value: str) -> str:
    """Return a path, or a list or mapping of YAML, without absolute folders."""
    if not value.startswith(("[", "{")):
        return _shorten_path(value)
    return _ENTRIES.sub(_shorten_entry, value)


def _shorten_entry(found: re.Match[str]) -> str:
    if found["plain"] is None:
        return f"{found['quote']}{_shorten_path(found['quoted'])}{found['quote']}"
    key = _KEY.match(found["plain"])
    assert key is not None  # it matches an empty text, too
    return key[0] + _shorten_path(found["plain"][key.end() :])


def _shorten_path(path: str) -> str:
    here = str(Path.cwd())
    if path.rstrip("/") == here:
        return "."
    return _FOLDER.sub("/path/to/", path.removeprefix(f"{here}/"))
