"""Files that several tests of decoders read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.clips import CASES, counting_clip, entry_of
from walt_pl.data.index import IndexEntry
from walt_pl.media.probing import Probe, probe
from walt_pl.media.writing import write_video


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", counting_clip(100), fps=8)
    return tmp_path / "clip.mp4"


@pytest.fixture(scope="session")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[IndexEntry, Probe]]:
    """A file of every kind, and what probe finds in it."""
    folder = tmp_path_factory.mktemp("videos")
    found = {}
    for case in CASES:
        path = case.write(folder)
        result = probe(path)
        found[case.name] = (entry_of(path, result), result)
    return found
