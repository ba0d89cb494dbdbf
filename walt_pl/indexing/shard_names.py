"""Names of tar shards, written as a pattern."""

import glob
import re
from itertools import product
from pathlib import Path


def is_pattern(source: str) -> bool:
    """Return whether a source is a pattern of shards, and not a file or folder that exists."""
    return not Path(source).exists() and (bool(re.search(r"\{\d+\.\.\d+\}", source)) or any(letter in source for letter in "*?["))


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern of shards stands for.

    "a-{08..11}.tar" stands for a-08.tar to a-11.tar. "*", "?" and "[" work as in a shell.
    """
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    ranges = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in zip(parts[1::3], parts[2::3], strict=True)]
    names = []
    for numbers in product(*ranges):
        names.append(parts[0] + "".join(number + rest for number, rest in zip(numbers, parts[3::3], strict=True)))
    return [found for name in names for found in (sorted(glob.glob(name)) if any(letter in name for letter in "*?[") else [name])]
