"""Validate a stage: `walt validate`, LightningCLI's own command."""

from collections.abc import Sequence

from walt_pl.cli.fit import WaltCLI


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt validate`."""
    WaltCLI(["validate", *words])
