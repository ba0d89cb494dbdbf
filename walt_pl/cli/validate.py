"""Validate a stage: `walt validate`, LightningCLI's own command with the weights that a user expects."""

from collections.abc import Sequence
from pathlib import Path

from stages.finetuning import init_from
from walt_pl.cli.fit import AUTO, WaltCLI
from walt_pl.runs.artifact import load
from walt_pl.runs.card import CARD
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.training.rank import is_rank_zero


class ValidateCLI(WaltCLI):
    """Take the weights from the newest checkpoint of the stage's training; if there is none, from the artifact.

    Averaged weights are used where there are any, as in the validations of the training. --ckpt_path names another checkpoint, --init
    another artifact.
    """

    RESTORING = "validating"

    def _find_checkpoint(self) -> None:
        """Find the weights.

        Raises:
            ValueError: there is neither a checkpoint nor an artifact, or not the one that was named.
        """
        options = self.options
        self.artifact: Path | None = None
        if options.ckpt_path in (None, AUTO):
            newest = None if options.init else Checkpoint.newest(options.checkpoint.dirpath, hashed=is_rank_zero())
            options.ckpt_path = None if newest is None else str(newest.path)
            if newest is None:
                self.artifact = self._find_artifact()
        super()._find_checkpoint()

    def _find_artifact(self) -> Path:
        options = self.options
        folder = Path(options.init) if options.init else self.manifest.folder(self.stage)
        if options.init or (folder / CARD).is_file():
            return folder
        raise ValueError(
            f'validate: stage "{self.stage}" has neither a whole checkpoint in {options.checkpoint.dirpath} nor an artifact in {folder}; '
            f"train it first: {self.manifest.command(self.stage)}, or name a checkpoint: --ckpt_path FOLDER"
        )

    def before_validate(self) -> None:
        """Load the weights of the artifact. They are averaged already."""
        if self.artifact is not None:
            if self.trainer.is_global_zero:
                print(f"{self.RESTORING} {self.artifact}, an artifact", flush=True)
            init_from(self.model.components(), load(self.artifact, verify=True))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt validate`."""
    ValidateCLI(["validate", *words])
