"""The manifest keeps the experiment that a stage was trained with, and accepts no other folder."""

import json
from pathlib import Path

import pytest

from tests.runs.test_manifest import export, run_dir, tiny_sections, train, write_experiment
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import ManifestError

__all__ = ["run_dir", "tiny_sections"]  # fixtures


def test_manifest_keeps_the_experiment_of_a_run_of_another_name(run_dir: Path, tmp_path: Path) -> None:
    """Commands after the training know it. An absolute path in the current folder counts as the relative one."""
    run = Path("runs/patch_1")
    Manifest.open(run, tmp_path / "experiments" / "shapes").start("vae", {})
    Manifest.open(run).finish("vae", export(run, "vae", {}))
    assert json.loads((run / "manifest.json").read_text())["stages"]["vae"]["experiment"] == "experiments/shapes"
    assert Manifest.open(run).experiment_folder() == Path("experiments/shapes")
    assert Manifest.open(run).command("sr1") == "python -m walt_pl fit --config experiments/shapes/sr1.yaml --run runs/patch_1"


def test_manifest_keeps_no_experiment_from_elsewhere(run_dir: Path, tmp_path: Path) -> None:
    """The manifest is as older versions wrote it, and theirs are read."""
    elsewhere = write_experiment(tmp_path / "mine", "vae")
    Manifest.open(run_dir, elsewhere).start("vae", {})
    assert set(json.loads((run_dir / "manifest.json").read_text())["stages"]["vae"]) == {"kind", "artifact", "training"}
    assert Manifest.open(run_dir).experiment_folder() == Path("experiments/shapes")


@pytest.mark.parametrize(
    "name",
    ["mine", "experiments", "/experiments/shapes", "experiments/../mine", f"experiments/{'a' * 300}", "experiments/" + "a/" * 600, 3],
)
def test_manifest_of_a_stranger_leads_to_no_folder_but_experiments(run_dir: Path, name: object) -> None:
    path = train(run_dir, "vae").path
    plain = json.loads(path.read_text())
    plain["stages"]["vae"]["experiment"] = name
    path.write_text(json.dumps(plain))
    with pytest.raises(ManifestError, match="experiment is"):
        Manifest.open(run_dir)


def test_manifest_command_takes_the_experiment_of_its_stage(run_dir: Path) -> None:
    """Two experiments have trained stages of one run, and both have a file for the second stage."""
    write_experiment(Path("experiments/other"), "vae", "base")
    train(run_dir, "vae", "base")
    path = run_dir / "manifest.json"
    plain = json.loads(path.read_text())
    plain["stages"]["vae"]["experiment"], plain["stages"]["base"]["experiment"] = "experiments/shapes", "experiments/other"
    path.write_text(json.dumps(plain))
    assert "EXP=other" in Manifest.open(run_dir).command("base")
    assert "EXP=shapes" in Manifest.open(run_dir).command("vae")
