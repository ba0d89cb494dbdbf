"""The files of a measurement: one JSON for each card and day, and the page rendered from it."""

import hashlib
import importlib.metadata
import itertools
import json
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.goals import judge
from benchmarks.gpu.report import render
from walt_pl.evaluation.program import machine
from walt_pl.files import write_whole
from walt_pl.runs.artifact_writing import code_revision
from walt_pl.untrusted import read_json

FORMAT = 1
ROOT = Path(__file__).parents[2]
SOURCES = ("walt_pl", "stages", "datamodules", "benchmarks")
SAME = ("card", "quick", "torch", "commit", "sources", "note")
"""Facts in which a measurement must agree to be gone on with."""


def find_facts(quick: bool) -> dict[str, Any]:
    """Return the card, the versions and the date."""
    on_gpu = torch.cuda.is_available() and not quick
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    commit = code_revision() or ""
    return {
        "card": properties.name if properties else machine().partition(",")[0],
        "memory_gb": round(properties.total_memory / 1e9) if properties else 0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "driver": _driver(),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": commit,
        "sources": "" if commit and not commit.endswith("-dirty") else hash_sources(ROOT),
        "date": date.today().isoformat(),
        "quick": quick,
        "note": "",
    }


def hash_sources(root: Path) -> str:
    """Return a hash of the code below a checkout, since a commit does not say it where files were changed."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def slug(card: str) -> str:
    """Return a card's name for a file: `NVIDIA H200` is nvidia_h200."""
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")


def go_on_with(out: Path, facts: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the newest measurement in `out` with these facts, or a new one, and its file."""
    name = slug(facts["card"]) + ("_quick" if facts["quick"] else "")
    for path in sorted(out.glob(f"{name}_[0-9]*.json"), reverse=True):
        found = read_json(path)
        if found["format"] == FORMAT and all(found["facts"][fact] == facts[fact] for fact in SAME):
            return path, found
    return new_path(out, name, facts["date"]), {"format": FORMAT, "facts": facts, "parts": {}, "goals": []}


def new_path(out: Path, name: str, date: str) -> Path:
    """Return a JSON's path that no file has yet. One of another commit of this day stays."""
    paths = (out / f"{name}_{date}{'' if number == 1 else f'_{number}'}.json" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def write(path: Path, result: dict[str, Any]) -> None:
    """Judge the goals, and write the JSON and the page whole."""
    result["goals"] = [] if result["facts"]["quick"] else judge(result["parts"])
    write_with_page(path, result, render(result))


def write_with_page(path: Path, result: dict[str, Any], page: str) -> None:
    """Write a JSON, and beside it the page rendered from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    write_whole(path.with_suffix(".md"), page.encode())
