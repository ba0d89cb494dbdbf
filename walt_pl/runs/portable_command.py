"""The command of a training in a form that may be handed around: without the folders of one machine."""

import re
from pathlib import Path

from walt_pl.plain_records import MAX_TEXT
from walt_pl.runs.progress import is_fit_command
from walt_pl.terminal_text import CONTROL

_FOLDER = re.compile(r"(?<![\w/.~:-])/(?:[\w.@+~-]+/)+")
"""An absolute folder, at the beginning of a word or of a value in it. Addresses such as https://host/ are left as they are."""


def portable_command(command: str) -> str:
    """Return a command of `fit` without absolute folders.

    Those below the current folder become relative to it, and others become /path/to/: they name a user or a machine, and would lead
    nowhere on another one.

    Args:
        command: quoted as a shell wants it.

    Returns:
        The command; empty if it is no command of `fit`, or not one line of limited length.
    """
    if not is_fit_command(command) or CONTROL.search(command) or len(command) > MAX_TEXT:
        return ""
    return _FOLDER.sub("/path/to/", command.replace(f"{Path.cwd()}/", ""))
