"""Names of tar shards, written as a pattern."""

import glob
import re
from itertools import product
from math import prod
from pathlib import Path

from walt_pl.data.tar_members import MAX_NAMES


def is_pattern(source: str) -> bool:
    """Return whether a source is a pattern of shards, and not a file or folder that exists."""
    return not Path(source).exists() and (bool(re.search(r"\{\d+\.\.\d+\}", source)) or any(letter in source for letter in "*?["))


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern of shards stands for.

    "a-{08..11}.tar" stands for a-08.tar to a-11.tar. "*", "?" and "[" work as in a shell.

    Raises:
        ValueError: it stands for more than `MAX_NAMES` names.
    """
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    counts = [_count(low, high) for low, high in zip(parts[1::3], parts[2::3], strict=True)]
    if prod(counts) > MAX_NAMES:
        raise ValueError(f"{pattern[:200]}: it stands for more than {MAX_NAMES:,} names, the most that are read; write larger shards")
    ranges = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in zip(parts[1::3], parts[2::3], strict=True)]
    names = []
    for numbers in product(*ranges):
        names.append(parts[0] + "".join(number + rest for number, rest in zip(numbers, parts[3::3], strict=True)))
    return [found for name in names for found in (sorted(glob.glob(name)) if any(letter in name for letter in "*?[") else [name])]


def _count(low: str, high: str) -> int:
    """Return the count of numbers from `low` to `high`. Python refuses to convert thousands of digits."""
    return max(0, int(high) - int(low) + 1) if max(len(low), len(high)) < 19 else MAX_NAMES + 1
