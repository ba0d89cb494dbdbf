"""Show the stages of a run: ``python -m walt_pl status``."""

from rich.console import Console

from walt_pl.runs.status import render_status


def status(run: str = "runs/shapes") -> None:
    """Show the stages of a run and their state.

    Args:
        run: folder of the run.
    """
    Console().print(render_status(run))
