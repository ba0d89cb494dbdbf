"""Show the stages of a run: ``python -m walt_pl status``."""

import dataclasses
from collections.abc import Sequence
from json import dumps

from walt_pl.cli.config_files import stages_of
from walt_pl.cli.console import print_table
from walt_pl.cli.function_command import call
from walt_pl.runs.manifest import Manifest, stored_note
from walt_pl.runs.status import render_status, status_rows


def status(run: str = "runs/shapes", json: bool = False) -> None:
    """Show the stages of a run and their states.

    A stage is running (with its step, speed and time left), stopped (the same command goes on from that step), done, stale (a parent was
    trained again), missing (its artifact was removed) or not started. Stages of its experiment that have not begun are listed, too.

    Args:
        run: folder of the run.
        json: print the rows as JSON.
    """
    rows = status_rows(run, stages_of(Manifest.open(run).experiment_folder()))
    if json:
        print(dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    print_table(render_status(run, rows))
    commands = [row.command for row in rows if row.command]
    if commands:
        # A command in a table could be wrapped, and then not be pasted.
        print_table("\n".join(["Next, in this order:", *commands]))
        if note := stored_note(commands):
            print_table(f"({note})")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt status`."""
    call(status, words)
