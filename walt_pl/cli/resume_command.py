"""The command that goes on with a training that was typed."""

import shlex
from collections.abc import Sequence

ONCE = ("from_scratch", "ckpt_path", "allow_changed")
"""Options of one start: they would start the training at the same place again, or allow later changes unseen."""


def resume_command(words: Sequence[str]) -> str:
    """Return a typed command without the options that keep it from going on.

    Args:
        words: words of the process after the name of the program, such as ["fit", "--config", "vae.yaml"].
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
    return shlex.join(["python", "-m", "walt_pl", *kept])
