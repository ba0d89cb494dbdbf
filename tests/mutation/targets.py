"""Choose mutants: the folders that are mutated, a sample spread evenly over them, and the list of excused survivors."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutation.operators import Mutant, generate

GROUPS: Mapping[str, tuple[str, ...]] = {
    "diffusion": ("walt_pl/diffusion/**/*.py",),
    "blocks": ("walt_pl/blocks/**/*.py",),
    "kernels": ("walt_pl/blocks/*_triton.py",),
    "models": ("walt_pl/models/**/*.py", "walt_pl/text/**/*.py"),
    "losses": ("walt_pl/**/losses*.py",),
    "stages": ("stages/**/*.py",),
    "sampling": ("walt_pl/sampling/**/*.py",),
    "strategies": ("walt_pl/**/strategies/**/*.py",),
    "order": ("walt_pl/data/*sampler*.py", "walt_pl/data/permutation.py", "walt_pl/data/loader.py"),
}
"""Files of each group, as patterns. Every pattern must match; a file belongs to the last group that names it."""
STARTING = frozenset({"kernels", "strategies"})
"""Groups whose faults show in processes of their own (ranks, Triton's interpreter): tests that start processes are run, too."""
SMALLEST_TREE = 150
"""Fewer mutants in all groups together mean that a pattern lost its files."""
OWN_NAME = "tests/mutation/targets.py"
EXCUSES = Path(__file__).with_name("survivors.yaml")

Pools = dict[str, list[Mutant]]


class TargetError(ValueError):
    """A pattern or an excuse that does not fit the tree."""


@dataclass(frozen=True)
class Excuse:
    """A survivor that no test should kill, and why."""

    function: str
    operator: str
    original: str
    mutated: str
    reason: str
    occurrence: int = 1

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        return self.function, self.operator, self.original, self.mutated, self.occurrence


def mutants_of(root: Path, groups: Mapping[str, Sequence[str]] = GROUPS) -> Pools:
    """Return every mutant of each group.

    Raises:
        TargetError: a pattern matches no file, or there are too few mutants.
    """
    group_of = {}
    for group, patterns in groups.items():
        for pattern in patterns:
            files = sorted(root.glob(pattern))
            if not files:
                raise TargetError(f"mutants: no file matches {pattern} of group {group}; correct the pattern in GROUPS of {OWN_NAME}")
            group_of |= dict.fromkeys(files, group)
    pools: Pools = {group: [] for group in groups}
    seen: Counter[tuple[str, str, str, str]] = Counter()
    for file, group in sorted(group_of.items()):
        pools[group] += generate(file.read_text(encoding="utf-8"), file.relative_to(root).as_posix(), seen)
    if (total := sum(map(len, pools.values()))) < SMALLEST_TREE:
        raise TargetError(f"mutants: found {total} in all groups, wanted at least {SMALLEST_TREE}; see GROUPS of {OWN_NAME}")
    return pools


def sample(pools: Mapping[str, Sequence[Mutant]], count: int, seed: int) -> dict[str, list[Mutant]]:
    """Choose so many mutants, as evenly as there are any from the groups, and within a group from the operators.

    Mutants are ordered by a hash of seed and identity: a function that comes or goes changes only its own place in the sample.
    """
    shares: dict[str, int] = {}
    left = count
    for place, (group, pool) in enumerate(sorted(pools.items(), key=lambda item: len(item[1]))):
        shares[group] = min(len(pool), left // (len(pools) - place))
        left -= shares[group]
    return {group: _across_operators(pool, seed)[: shares[group]] for group, pool in pools.items()}


def _across_operators(pool: Sequence[Mutant], seed: int) -> list[Mutant]:
    """Order mutants so that the operators take turns."""
    by_operator = defaultdict(list)
    for mutant in sorted(pool, key=lambda mutant: rank(mutant, seed)):
        by_operator[mutant.operator].append(mutant)
    turns = [(turn, mutant) for mutants in by_operator.values() for turn, mutant in enumerate(mutants)]
    return [mutant for _, mutant in sorted(turns, key=lambda item: (item[0], rank(item[1], seed)))]


def rank(mutant: Mutant, seed: int) -> str:
    return hashlib.sha256(repr((seed, mutant.identity)).encode()).hexdigest()


def read_excuses(path: Path = EXCUSES) -> list[Excuse]:
    """Read the list of excused survivors.

    Raises:
        TargetError: an entry lacks a key or has one too many, has no reason, or is there twice.
    """
    excuses = []
    for number, entry in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")) or [], start=1):
        try:
            excuses.append(Excuse(**entry))
        except TypeError as error:
            raise TargetError(f"{path.name}, entry {number}: {error}; copy an entry from the report of make mutants") from None
        if not str(excuses[-1].reason).strip():
            raise TargetError(f"{path.name}, entry {number} ({excuses[-1].function}): no reason given; say why no test should kill it")
    twice = [identity for identity, times in Counter(excuse.identity for excuse in excuses).items() if times > 1]
    if twice:
        raise TargetError(f"{path.name}: listed more than once: {twice}; remove one of each")
    return excuses


def stale_excuses(excuses: Sequence[Excuse], pools: Mapping[str, Sequence[Mutant]]) -> list[Excuse]:
    """Return the excuses whose mutant no longer exists: the code was changed, or its function renamed."""
    there = {mutant.identity for pool in pools.values() for mutant in pool}
    return [excuse for excuse in excuses if excuse.identity not in there]
