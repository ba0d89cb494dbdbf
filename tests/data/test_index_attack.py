"""A tenth of the attacks on the index, the cache and the sources: none has a wrong outcome."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.attack.index import _attack_cache, _attack_index
from tests.attack.outcome import Outcome


@pytest.mark.parametrize("part", [_attack_index, _attack_cache])
def test_attack_index_has_no_wrong_outcome(part: object, tmp_path: Path) -> None:
    count = 10 if part is _attack_index else 6
    assert callable(part)
    outcomes: list[Outcome] = list(part(Random(1), count, tmp_path / "case"))
    assert len(outcomes) == count and not [outcome for outcome in outcomes if outcome.verdict == "wrong"]
