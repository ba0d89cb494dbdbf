"""Remove a run and the painted set: ``python -m walt_pl clean``."""

from collections.abc import Sequence
from pathlib import Path

from walt_pl.cli.function_command import call
from walt_pl.removal import describe_left, remove_own
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.run_files import RUN_FILES


def clean(run: str = "runs/shapes", data: str | None = None) -> None:
    """Remove the files that this program wrote into a run. Links and other files stay, and are named.

    Args:
        run: folder of the run.
        data: folder of an embedded set to remove as well.
    """
    folder = Path(run)
    manifest = Manifest.open(folder)
    for stage in manifest.stages():
        manifest.check_free(stage)
    if folder.exists() and not manifest.path.is_file():
        raise ValueError(f"{run} has no manifest.json, so it is no run, and nothing was removed: name the folder of a run with --run")
    left = remove_own(folder, RUN_FILES)
    if data is not None and (Path(data) / "recipe.json").is_file():
        # Imported here: it imports torch.
        from walt_pl.shapes.dataset import remove_set

        left += remove_set(Path(data))
    print(f"clean: these are no files of this program, and stay: {describe_left(left)}" if left else f"clean: {run} is removed")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt clean`."""
    call(clean, words)
