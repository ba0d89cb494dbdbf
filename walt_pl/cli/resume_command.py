"""The command of a training as it was typed, and the one that goes on with it."""

import shlex
from collections.abc import Sequence

ONCE = ("from_scratch", "ckpt_path", "allow_changed")
"""Options of one start: they would start the training at the same place again, or allow later changes unseen."""


def typed_command(words: Sequence[str]) -> str:
    """Return a command as it was typed, quoted as a shell wants it.

    Args:
        words: words of the process after the name of the program, such as ["fit", "--config", "vae.yaml"].
    """
    return shlex.join(["python", "-m", "walt_pl", *words])


def resume_command(words: Sequence[str]) -> str:
    """Return a typed command without the options that keep it from going on.

    Args:
        words: as those of `typed_command`.
    """
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if word.startswith("--") and name[2:].replace("-", "_") in ONCE:
            if not equals:
                next(rest, None)
            continue
        kept.append(word)
    return typed_command(kept)
