"""A parent that is trained again while a stage starts is found before the stage trains."""

from pathlib import Path

import pytest

from tests.runs.test_manifest import run_dir, tiny_sections, train
from walt_pl.runs.stage_names import ManifestError
from walt_pl.training.callbacks.export import check_same_parents

__all__ = ["run_dir", "tiny_sections"]  # fixtures


def test_check_same_parents_finds_an_autoencoder_that_was_trained_again(run_dir: Path) -> None:
    manifest = train(run_dir, "vae")
    parents = manifest.check_parents("base")
    check_same_parents(manifest, parents)
    train(run_dir, "vae")
    with pytest.raises(ManifestError, match=rf'"vae" was trained again .* \({parents["vae"][:12]} -> .*type the same'):
        check_same_parents(manifest, parents)
