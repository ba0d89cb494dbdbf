"""The commands beside LightningCLI's own: status, verify, index."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from walt_pl.manifest import render_status, verify_run


def status(run: str = "runs/shapes") -> None:
    """Show the stages of a run and what state they are in.

    Args:
        run: folder of the run.
    """
    Console().print(render_status(run))


def verify(run: str = "runs/shapes") -> None:
    """Read every byte of a run's artifacts and compare the hashes.

    Args:
        run: folder of the run.
    """
    problems = verify_run(run)
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{run}: every byte is as its stage left it")


def index(source: str, out: str = "data/shapes", videos: int = 2000, images: int = 1000, validation: int = 300, seed: int = 0) -> None:
    """Build a data index. The one source so far is the word ``shapes``: the embedded set, painted from a seed.

    Args:
        source: what to index.
        out: folder of the set.
        videos: training videos.
        images: training images.
        validation: validation videos.
        seed: of the pictures.
    """
    if source != "shapes":
        raise ValueError(f"index: unknown source {source!r}, want: shapes")
    from walt_pl.data.shapes import write_set

    print(write_set(Path(out), videos, images, validation, seed))


COMMANDS: dict[str, Callable[..., None]] = {"status": status, "verify": verify, "index": index}
