"""Check the bytes of a run's artifacts: ``python -m walt_pl verify``."""

from collections.abc import Sequence

from walt_pl.cli.function_command import call
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.status import verify_run
from walt_pl.terminal_text import printable


def verify(run: str = "runs/shapes") -> None:
    """Read every byte of a run's artifacts and compare the hashes.

    Args:
        run: folder of the run.
    """
    problems = verify_run(run)
    if problems:
        raise SystemExit(printable("\n".join(problems)))
    read = [name for name, stage in Manifest.open(run).stages().items() if stage.artifact is not None]
    print(f"{run}: every byte of {', '.join(read)} is as its stage left it" if read else f"{run}: no stage is finished, nothing was read")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt verify`."""
    call(verify, words)
