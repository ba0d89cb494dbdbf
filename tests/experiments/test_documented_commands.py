"""Every file of experiments/ is part of a command that first lines give, and every such command parses and builds."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from tests.helpers.experiments import COMMANDS, FILES, RUN, documented, opening, planned, typed
from walt_pl.cli.config_files import extended_files


@pytest.mark.parametrize("command", COMMANDS)
def test_experiment_every_documented_command_parses_and_builds(command: str) -> None:
    assert typed(command)
    for arguments in typed(command):
        plan = planned(*arguments)
        assert plan.parameters()["total"] > 0
        assert plan.stage in " ".join(arguments)


def test_experiment_every_file_is_part_of_a_documented_command() -> None:
    used: set[Path] = set()
    for command in COMMANDS:
        for arguments in typed(command):
            configs = [ROOT / name for word, name in itertools.pairwise(arguments) if word == "--config"]
            used |= {path.resolve() for path in [*configs, *extended_files(configs[0])]}
    assert set(FILES) - used == set()


def test_experiment_commands_with_their_own_run_train_or_name_a_vae() -> None:
    """It is trained there, or named."""
    alone = [(command, match[1]) for command in COMMANDS if (match := re.search(r"--run ([\w/]+)", command))]
    trained = {run for command, run in alone if command.startswith("make train-vae")}
    assert len(alone) == 13 and len(trained) == 1
    assert not [command for command, run in alone if run not in trained and " --model.vae runs/shapes/vae" not in command]


@pytest.mark.parametrize("target", ["plan", "cache"])
def test_make_passes_the_stage_and_devices_and_names_a_missing_stage(target: str) -> None:
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "-n", target, "EXP=ucf101", *words], cwd=ROOT, capture_output=True, text=True, check=False)

    said = make("STAGE=base_xl", "DEVICES=4", "NODES=1").stdout
    assert "--config experiments/ucf101/base_xl.yaml" in said
    if target == "plan":  # a cache is computed by one process
        (line,) = [line for line in said.splitlines() if "walt_pl plan" in line]
        assert planned(*shlex.split(line.split("walt_pl plan", 1)[1])).gpus == 4
    refused = make("STAGE=typo")
    assert refused.returncode and "no experiments/ucf101/typo.yaml; there are: base_l " in refused.stderr


@pytest.mark.parametrize("config", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_experiment_every_file_opens_with_its_promise(config: Path) -> None:
    text = opening(config)
    if not documented(config):
        assert "No stage of its own" in text
    else:
        assert "ot yet run" in text or RUN.get(config.parent.name, "ot yet run") in text, "what it reached, or that nobody knows"
