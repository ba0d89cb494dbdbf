"""Run `fit` in its own process, for the commands that train several stages."""

import subprocess
import sys
from collections.abc import Sequence

from walt_pl.processes import exit_reason


def run_fit(words: Sequence[str], name: str) -> None:
    """Train one stage as a user would.

    Args:
        words: words of the command line after `fit`.
        name: command and stage, for the beginning of the error.

    Raises:
        SystemExit: `fit` ended with an error.
    """
    code = subprocess.run([sys.executable, "-m", "walt_pl", "fit", *words], check=False).returncode
    if code:
        raise SystemExit(f"{name} stopped ({exit_reason(code)}); the same command goes on from there")
