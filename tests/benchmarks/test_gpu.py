"""The parts of benchmarks/gpu on a CPU, with tiny sizes; their files, their limits, and the goals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.goals import GOALS, judge
from benchmarks.gpu.report import describe_parts, render
from benchmarks.gpu.results import SAME, go_on_with, write
from benchmarks.gpu.run_part import run_part
from tests.helpers.environment import ROOT

ONLY_IN_FULL = {"over_bare", "peak_gb", "memory_over_plan"}
"""Figures that a CPU does not give, or that come with a row of a full run."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the JSON of a quick run of all parts."""
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = out.glob("*.json")
    return found


def test_gpu_quick_measures_every_part_and_writes_a_page(quick: Path) -> None:
    result = json.loads(quick.read_text())
    assert result["parts"].keys() == describe_parts().keys()
    for name, part in result["parts"].items():
        assert part["state"] == "done", (name, part["error"])
        accepted = ("needs a GPU", "not installed", "left out of quick runs")
        assert all(any(word in reason for word in accepted) for reason in part["skipped"].values()), (name, part["skipped"])
    assert quick.with_suffix(".md").read_text() == render(result)
    assert result["parts"]["resume"]["rows"][1]["equal"] == 1


def test_gpu_goals_name_rows_and_figures_that_parts_give(quick: Path) -> None:
    parts = json.loads(quick.read_text())["parts"]
    for goal in [*GOALS, *(replace(goal, part=goal.over[0], row=goal.over[1]) for goal in GOALS if goal.over)]:
        if goal.part == "other_autoencoders" and "Wan 2.1" in parts[goal.part]["skipped"]:
            continue  # diffusers is not installed
        rows = {row["row"]: row for row in parts[goal.part]["rows"]}
        assert goal.row in rows or goal.row in parts[goal.part]["skipped"], goal
        assert goal.row not in rows or goal.figure in {*rows[goal.row], *ONLY_IN_FULL}, goal


def test_gpu_next_call_goes_on_and_a_changed_fact_begins_anew(quick: Path) -> None:
    facts = json.loads(quick.read_text())["facts"]
    path, result = go_on_with(quick.parent, facts)
    assert path == quick and result["parts"]
    for fact in SAME:
        other, empty = go_on_with(quick.parent, {**facts, fact: not facts[fact] if fact == "quick" else "another"})
        assert other != quick and not other.exists() and not empty["parts"], fact


def test_gpu_part_that_crashes_leaves_its_last_words() -> None:
    found = run_part("no_such_part", quick=False, limit=120)
    assert found["state"] == "failed" and "No module named 'benchmarks.gpu.parts.no_such_part'" in found["error"]


def test_gpu_part_ends_at_its_limit() -> None:
    found = run_part("resume", quick=False, limit=0.3)
    assert found["state"] == "timeout" and found["seconds"] < 30


def _part(**row: Any) -> dict[str, Any]:
    return {
        "purpose": "",
        "state": "done",
        "seconds": 1.0,
        "rows": [{"row": "SW 1x16x16: triton", **row}],
        "skipped": {},
        "failed": {},
        "error": "",
    }


@pytest.mark.parametrize(("ms", "met"), [(1.1, True), (1.2, False)])
def test_gpu_goal_is_met_up_to_its_value(ms: float, met: bool) -> None:
    first, *others = judge({"attention": _part(ms=ms)})
    assert (first["value"], first["met"]) == (ms, met)
    assert all(goal["met"] is None for goal in others)


def test_gpu_report_says_met_missed_and_not_measured(tmp_path: Path) -> None:
    facts = dict.fromkeys(("torch", "cuda", "driver", "triton", "python", "commit", "note"), "")
    result = {"facts": {**facts, "card": "Card", "date": "today", "memory_gb": 80, "quick": False}, "parts": {"attention": _part(ms=1.2)}}
    write(tmp_path / "a.json", result)
    page = (tmp_path / "a.md").read_text()
    assert "| SW attention, forward + backward, ms | 1.2 | at most 1.1 | missed |" in page
    assert "| STW attention, forward + backward, ms |  | at most 1.4 | not measured |" in page
