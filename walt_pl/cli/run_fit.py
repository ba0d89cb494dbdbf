"""Run `fit` in its own process, for the commands that train several stages."""

import subprocess
import sys
from collections.abc import Sequence

from walt_pl.processes import exit_reason


def run_fit(words: Sequence[str], name: str) -> None:
    """Train one stage as a user would.

    A terminal sends Ctrl-C to `fit` as well, which writes a checkpoint. This process waits for that. A second Ctrl-C ends both at once.

    Args:
        words: words of the command line after `fit`.
        name: command and stage, for the beginning of the error.

    Raises:
        SystemExit: `fit` ended with an error, or was interrupted.
    """
    # subprocess.run would kill `fit` a quarter of a second after Ctrl-C, before its checkpoint.
    child = subprocess.Popen([sys.executable, "-m", "walt_pl", "fit", *words])
    try:
        code, interrupted = _wait(child)
    except KeyboardInterrupt:
        child.kill()
        child.wait()
        raise SystemExit(f"{name} was ended at once; the same command goes on from its last checkpoint") from None
    except BaseException:  # the handler of SIGTERM raises SystemExit
        child.terminate()
        child.wait()
        raise
    if interrupted:
        raise SystemExit(f"{name} was interrupted; the same command goes on from there")
    if code:
        raise SystemExit(f"{name} stopped ({exit_reason(code)}); the same command goes on from there")


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Wait for a process through the first Ctrl-C.

    Returns:
        Exit code of the process, and whether there was a Ctrl-C.

    Raises:
        KeyboardInterrupt: the second Ctrl-C.
    """
    try:
        return child.wait(), False
    except KeyboardInterrupt:
        return child.wait(), True
