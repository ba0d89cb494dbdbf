"""Runs of a few megabytes, such as one that git keeps."""

import os
from pathlib import Path

from tests.runs.test_manifest import run_dir, tiny_sections, train
from walt_pl.runs.status import verify_run

__all__ = ["run_dir", "tiny_sections"]  # fixtures


def test_manifest_of_a_small_copied_run_stays_as_it_is(run_dir: Path) -> None:
    """A run of a few megabytes that git keeps: its files have other times in each checkout."""
    chain = train(run_dir, "vae", "base")
    before = (run_dir / "manifest.json").read_bytes()
    os.utime(run_dir / "vae" / "model.safetensors", ns=(0, 10**18))
    assert set(chain.usable(["vae", "base"])) == {"vae", "base"} and verify_run(run_dir) == []
    assert (run_dir / "manifest.json").read_bytes() == before and not (run_dir / "manifest.lock").exists()
