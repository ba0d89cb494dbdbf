"""Write the report of a run as one HTML file: ``python -m walt_pl report RUN``."""

from collections.abc import Sequence
from pathlib import Path

from walt_pl.cli.config_files import stages_of
from walt_pl.cli.function_command import call
from walt_pl.runs.experiment_files import EXPERIMENTS, find_experiment

REPORT = "report.html"
"""Name of the report in the folder of its run."""


def report(run: str, out: str = "") -> None:
    """Write one HTML file about a run: its stages, curves, previews, samples, metrics, data, incidents, configuration and cost.

    The file needs no network and no other file, and has at most 10 MB. The run may be unfinished.

    Args:
        run: folder of the run.
        out: the HTML file; report.html in the folder of the run if not set.
    """
    print(describe_report(Path(run), Path(out) if out else Path(run) / REPORT))


def describe_report(run: Path, out: Path) -> str:
    """Write the report of a run, and return a sentence about it."""
    # Imported here: it imports matplotlib and tensorboard, which `walt report --help` does not need.
    from walt_pl.report.page import write_report

    written = write_report(run, out, stages_of(find_experiment(EXPERIMENTS / run.resolve().name)))
    left_out = f", {written.left_out} plots and pictures left out" if written.left_out else ""
    problems = f", {written.problems} files could not be read whole (listed at its end)" if written.problems else ""
    return f"report: {written.path}, {written.bytes / 1e6:.1f} MB{left_out}{problems}"


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt report`."""
    call(report, words)
