"""A tenth of `make attack`: no attack has a wrong outcome."""

from pathlib import Path
from random import Random

import pytest

from tests.attack.__main__ import seed_of_commit
from tests.attack.groups import GROUPS


# Kills take four minutes. The kill tests of tests/training/test_resume.py always run.
@pytest.mark.parametrize("group", [pytest.param(group, marks=pytest.mark.slow) if group == "kills" else group for group in GROUPS])
def test_attack_has_no_wrong_outcome(group: str, tmp_path: Path) -> None:
    seed = seed_of_commit()
    outcomes = list(GROUPS[group](Random(f"{seed} {group}"), 0.1, tmp_path))
    assert outcomes
    assert [outcome for outcome in outcomes if outcome.verdict == "wrong"] == [], (
        f"python -m tests.attack {group} --share 0.1 --seed {seed}"
    )
