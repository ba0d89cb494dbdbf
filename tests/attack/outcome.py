"""Outcomes of attacks: a row each, which `python -m tests.attack` counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias

Verdict = Literal["refused", "named", "fell back", "unharmed", "wrong"]
"""Verdict of one attack.

refused: our error, of one to five lines, before anything of the file was used.
named: the file or item is reported as damaged, and the rest goes on.
fell back: an older or newly made one is used in its place, and a message says so.
unharmed: the result equals that without the attack, such as a whole file after a kill.
wrong: anything else: another result in silence, a crash, a library's error, a marker that ran, more than the time limit.
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attack."""

    attack: str
    """Attack in words, enough to repeat it: file, byte, bit."""
    verdict: Verdict
    detail: str = ""
    """Message of the program, or what was wrong."""


Attack: TypeAlias = Callable[[Random, float, Path], Iterator[Outcome]]
"""Function of a random generator, the share of the attacks to run (0.1 in CI, 1 in `make attack`), and an empty folder to work in."""


def count_of(whole: int, share: float) -> int:
    """Return the number of attacks to run of a group: at least one."""
    return max(1, round(whole * share))
