"""A missing parent is named before data is painted or torch is imported, and `make` names the nearest experiment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from walt_pl.cli.ready import ready
from walt_pl.runs.manifest import MissingStage

BASE = "experiments/shapes/base.yaml"


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-n", "-o", ".venv/.ready", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("config, parent", [(BASE, "vae"), ("experiments/shapes/sr1.yaml", "vae")])
def test_ready_names_a_missing_parent_and_its_command(tmp_path: Path, config: str, parent: str) -> None:
    with pytest.raises(MissingStage, match=f'needs stage "{parent}", which is missing .*make train-{parent} EXP=shapes'):
        ready(["--config", config, "--run", str(tmp_path), "--trainer.max_steps", "2"])
    assert not list(tmp_path.iterdir())


def test_ready_leaves_named_parents_and_unknown_stages_to_fit(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"run: {tmp_path}\nmodel: {{init_args: {{vae: runs/other/vae}}}}")
    ready(["--config", BASE, "--run", str(tmp_path), "--model.vae", "runs/other/vae"])
    ready(["--config", BASE, "--run", str(tmp_path), "--model.init_args.vae=runs/other/vae"])
    ready(["--config", BASE, "--config", str(overlay)])
    ready(["--config", "experiments/shapes/vae.yaml", "--run", str(tmp_path)])
    ready(["--print_config"])


def test_ready_reads_run_and_stage_of_configs(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(f"run: {tmp_path}\nstage: base_mine\nmodel: {{init_args: {{vae: {{width: 8}}}}}}")
    with pytest.raises(MissingStage, match=f'stage "base_mine" needs stage "vae", which is missing in {tmp_path}'):
        ready(["--config", BASE, "--config", str(overlay)])


def test_ready_command_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; from walt_pl.cli.main import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "ready", "--config", BASE, "--run", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode and done.stdout == "False\n" and 'error: stage "base" needs stage "vae"' in done.stderr


@pytest.mark.parametrize("target", ["train-base", "train-sr"])
def test_make_checks_the_parents_before_the_data(target: str) -> None:
    done = make(target, "RUN=runs/none", "ARGS=--trainer.max_steps 2", "INDEX_shapes=data-clips")  # a target that is always made
    said = [line for line in done.stdout.splitlines() if "walt_pl" in line]
    assert "walt_pl ready --config experiments/shapes/" in said[0] and "--run runs/none" in said[0] and "max_steps 2" in said[0]
    assert "walt_pl clips" in said[1]
    assert "walt_pl fit" in said[-1] and all("walt_pl ready" not in line for line in said[1:])


def test_make_paper_paints_both_sets_first() -> None:
    said = make("paper", "--always-make").stdout.splitlines()
    painted = ["index shapes --out data/shapes", "index shapes --out data/shapes_9x16 --aspect 1.75"]
    places = [next(number for number, line in enumerate(said) if line.endswith(words)) for words in painted]
    assert max(places) < next(number for number, line in enumerate(said) if "walt_pl paper" in line)


@pytest.mark.parametrize("target", ["train-vae", "train-base", "train-sr", "plan"])
def test_make_names_the_nearest_experiment(target: str) -> None:
    near, far = make(target, "EXP=shaps"), make(target, "EXP=qqqqq")
    assert near.returncode and "no experiments/shaps; did you mean EXP=shapes?" in near.stderr
    assert far.returncode and "no experiments/qqqqq; there are: clips imagenet" in far.stderr


def test_make_tensorboard_passes_args() -> None:
    assert "tensorboard.main --logdir runs --host 127.0.0.1 --port 7000" in make("tensorboard", "ARGS=--port 7000").stdout
