"""Files of experiments: those of the current folder first, then those that came with the program."""

from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from walt_pl.cli.config_files import extended_files, find_configs
from walt_pl.runs.experiment_files import as_typed, find_experiment
from walt_pl.runs.manifest import Manifest

PACKAGED = ROOT / "experiments"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["experiments/shapes/vae.yaml", "experiments/shapes", "./experiments/ucf101/../shapes/vae.yaml"])
def test_find_experiment_uses_the_packaged_one_where_the_current_folder_has_none(name: str) -> None:
    found = find_experiment(Path(name))
    assert found == PACKAGED / "shapes" / ("vae.yaml" if name.endswith("yaml") else "") and found.exists()
    assert as_typed(found) == Path("experiments/shapes") / ("vae.yaml" if name.endswith("yaml") else "")


def test_find_experiment_prefers_the_current_folder(here: Path) -> None:
    own = Path("experiments/shapes/vae.yaml")
    (here / own).parent.mkdir(parents=True)
    (here / own).touch()
    assert find_experiment(own) == own and find_experiment(own.parent) == own.parent
    assert find_experiment(own.with_name("base.yaml")) == PACKAGED / "shapes" / "base.yaml"


@pytest.mark.parametrize(
    "name", ["experiments/shapes/typo.yaml", "shapes/vae.yaml", "mine/experiments/shapes/vae.yaml", "/experiments/shapes"]
)
def test_find_experiment_leaves_other_paths_as_they_are(name: str) -> None:
    assert find_experiment(Path(name)) == Path(name) == as_typed(Path(name))


@pytest.mark.parametrize("typed", [["--config", "{}"], ["-c", "{}"], ["--config={}"], ["-c={}"]])
def test_find_configs_replaces_values_of_config_alone(typed: list[str]) -> None:
    name = "experiments/shapes/vae.yaml"
    words = ["fit", *(word.format(name) for word in typed), "--data.index", name, "--init=experiments/shapes", name]
    assert find_configs(words) == ["fit", *(word.format(PACKAGED / "shapes/vae.yaml") for word in typed), *words[1 + len(typed) :]]
    assert find_configs([]) == [] and find_configs(["--config"]) == ["--config"]


def test_extended_files_of_the_current_folder_may_be_packaged(here: Path) -> None:
    own = Path("experiments/mine/base.yaml")
    (here / own).parent.mkdir(parents=True)
    (here / own).write_text("extends: [../common/base.yaml]\n")
    found = extended_files(own)
    assert found == [*extended_files(PACKAGED / "common" / "base.yaml"), PACKAGED / "common" / "base.yaml"] and len(found) > 1


def test_as_typed_keeps_a_packaged_path_that_the_current_folder_hides(here: Path) -> None:
    own = Path("experiments/shapes/vae.yaml")
    (here / own).parent.mkdir(parents=True)
    (here / own).touch()
    assert as_typed(PACKAGED / "shapes" / "vae.yaml") == PACKAGED / "shapes" / "vae.yaml"


@pytest.mark.parametrize("stage", ["vae", "sr1"])
def test_manifest_command_names_a_packaged_config_as_it_is_typed(stage: str) -> None:
    wanted = f"python -m walt_pl fit --config experiments/shapes/{stage}.yaml"
    assert Manifest.open("runs/shapes", PACKAGED / "shapes").command(stage) == wanted
    assert Manifest.open("runs/shapes").command(stage) == wanted
    assert Manifest.open("runs/mine", PACKAGED / "shapes").command(stage) == f"{wanted} --run runs/mine"
