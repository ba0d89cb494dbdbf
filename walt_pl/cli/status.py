"""Show the stages of a run: ``python -m walt_pl status``."""

from collections.abc import Sequence

from rich.console import Console

from walt_pl.cli.function_command import call
from walt_pl.runs.status import render_status


def status(run: str = "runs/shapes") -> None:
    """Show the stages of a run and their state.

    Args:
        run: folder of the run.
    """
    Console().print(render_status(run))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt status`."""
    call(status, words)
