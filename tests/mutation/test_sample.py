"""Twelve mutants in every run of the tests; ``make mutants`` runs the large sample."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEED = 6
"""Of the sample. Where a rename brings another mutant into it that survives, the tests of its file have a gap: close it, or excuse it."""


def test_mutation_command_kills_twelve_mutants_by_the_tests_of_their_files(tmp_path: Path) -> None:
    # Chosen by rule: spread over the groups, from files that have tests of their own name which start no process.
    command = [sys.executable, "-m", "tests.mutation", "--quick", "--count", "12", "--seed", str(SEED), "--workers", "2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ended = subprocess.run(
        [*command, "--results", str(tmp_path / "results.jsonl")], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    said = f"{ended.stdout}\n{ended.stderr}\nexit code {ended.returncode}"
    assert "12 of 12 killed" in ended.stdout, f"{said}\nkill what survived with a test, or excuse it (docs/TESTING.md)"
