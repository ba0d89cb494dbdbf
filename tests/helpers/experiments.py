"""The experiments that come with the program: their files, the commands that their first lines give, and their plans."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from walt_pl.cli.plan import PlanCLI

EXPERIMENTS = ROOT / "experiments"
OURS = ("clips", "common", "imagenet", "kinetics600", "shapes", "strategy", "text_to_video", "ucf101")
"""Experiments that come with the program; whoever adds one of their own promises nothing."""
FILES = sorted(path for name in OURS for path in (EXPERIMENTS / name).rglob("*.yaml"))


def planned(*arguments: str) -> PlanCLI:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return PlanCLI(arguments)


def of(name: str, overlay: str | None = None, *more: str) -> PlanCLI:
    configs = [name, overlay] if overlay else [name]
    return planned(*(word for config in configs for word in ("--config", f"experiments/{config}.yaml")), *more)


def opening(config: Path) -> str:
    lines = config.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def documented(config: Path) -> list[str]:
    """The commands that the first lines of a file give."""
    return re.findall(r"^# (make train-(?:vae|base|sr)(?: \w+=(?:\"[^\"]*\"|\w+))*)", opening(config), re.MULTILINE)


def typed(command: str) -> list[list[str]]:
    """Return what `make` would run: the arguments of each `fit`."""
    said = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line.split("walt_pl fit", 1)[1]) for line in said.splitlines() if "walt_pl fit" in line]


COMMANDS = sorted({command for config in FILES for command in documented(config)})
RUN = {"shapes": "Reached", "clips": "Reached", "ablations": "see docs/RESULTS.md", "causes": "docs/RESULTS.md"}
"""Folders that were run, and the words of their files for it. All other files say that they were not run."""
FULL_SIZE = [
    path for path in FILES if RUN.get(path.parent.name) is None and "\nextends:" in path.read_text(encoding="utf-8") and documented(path)
]
