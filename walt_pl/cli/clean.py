"""Remove a run and painted sets: ``python -m walt_pl clean``."""

from collections.abc import Sequence
from pathlib import Path

from walt_pl.cli.function_command import call
from walt_pl.removal import describe_left, remove_own
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.run_files import RUN_FILES
from walt_pl.runs.status import status_rows


def clean(run: str = "runs/shapes", data: str | None = None) -> None:
    """Remove the files that this program wrote into a run. Links and other files stay, and are named.

    Args:
        run: folder of the run.
        data: folders of embedded sets to remove as well, with commas between them.
    """
    folder = Path(run)
    manifest = Manifest.open(folder)
    if folder.exists() and not manifest.path.is_file():
        raise ValueError(f"{run} has no manifest.json, so it is no run, and nothing was removed: name the folder of a run with --run")
    for row in status_rows(folder) if manifest.stages() else ():
        if row.state == "running":
            raise ValueError(
                f'stage "{row.stage}" of {run} is in training by process {row.process} on {row.host}: nothing was removed; stop it first'
            )
    left = remove_own(folder.resolve(), RUN_FILES)  # the folder itself may be a link to another disk
    for painted in map(Path, filter(None, (data or "").split(","))):  # an empty name would be the folder of the command
        if (painted / "recipe.json").is_file():
            # Imported here: it imports torch.
            from walt_pl.shapes.dataset import remove_set

            left += remove_set(painted)
    print(f"clean: these are no files of this program, and stay: {describe_left(left)}" if left else f"clean: {run} is removed")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt clean`."""
    call(clean, words)
