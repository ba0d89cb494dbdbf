"""Say how many mutants the tests killed, and show those that survived."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.mutation.operators import Mutant
from tests.mutation.targets import Excuse

GOAL = 0.9
"""Share of the mutants that must be killed."""

NO_RESULT = ("broken", "not run")


@dataclass(frozen=True)
class Tried:
    """A mutant of the sample, and how its tests ended."""

    group: str
    mutant: Mutant
    tests: tuple[str, ...]
    """Test files that were run, nearest first."""
    source: bytes
    """The file as it is."""
    verdict: str
    """``killed``, ``timeout`` (counts as killed), ``survived``, ``broken``, or ``not run``."""
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def killed(self) -> bool:
        return self.verdict in ("killed", "timeout")


def render(tried: Sequence[Tried], excuses: Sequence[Excuse], stale: Sequence[Excuse]) -> tuple[str, bool]:
    """Return the report, and whether the goal is met: every mutant was run, and enough of those without an excuse were killed."""
    reasons = {excuse.identity: excuse.reason for excuse in excuses}
    excused = [one for one in tried if one.verdict == "survived" and one.mutant.identity in reasons]
    survivors = [one for one in tried if one.verdict == "survived" and one not in excused]
    needless = [one for one in tried if one.killed and one.mutant.identity in reasons]
    lacking = [one for one in tried if one.verdict in NO_RESULT]
    lines: list[str] = []
    for one in survivors:
        lines += _described(one)
    lines += [f"excused: {_title(one)}: {reasons[one.mutant.identity]}" for one in excused]
    lines += [f"excused, but killed; remove the entry: {_title(one)}" for one in needless]
    lines += [f"stale excuse, no such mutant; remove or correct the entry: {excuse.function}: {excuse.original}" for excuse in stale]
    lines += [f"{one.verdict}: {_title(one)}" for one in lacking]
    killed, counted = sum(one.killed for one in tried), len(tried) - len(excused) - len(lacking)
    lines += ["", *_table(tried, reasons)]
    done = [one for one in tried if one not in lacking]
    if done:
        lines += [
            f"mean time of a mutant: {sum(one.cpu for one in done) / len(done):.1f} s of a core, "
            f"{sum(one.wall for one in done) / len(done):.1f} s by the clock"
        ]
    share = killed / max(1, counted)
    lines += [f"mutants: {killed} of {counted} killed, {share:.1%} (goal {GOAL:.0%}); {len(excused)} excused survivors are not counted"]
    if excused:
        lines += [f"counted as well, they make it {killed / (counted + len(excused)):.1%}"]
    if lacking:
        lines += [f"{len(lacking)} have no result: type the same command again"]
    return "\n".join(lines), share >= GOAL and not lacking


def _table(tried: Sequence[Tried], reasons: Mapping[tuple[str, str, str, str, int], str]) -> list[str]:
    lines = [f"{'group':<12}{'killed':>8}{'of':>6}{'excused':>9}{'timeouts':>10}"]
    for group in dict.fromkeys(one.group for one in tried):
        own = [one for one in tried if one.group == group and one.verdict not in NO_RESULT]
        excused = sum(one.verdict == "survived" and one.mutant.identity in reasons for one in own)
        timeouts = sum(one.verdict == "timeout" for one in own)
        lines.append(f"{group:<12}{sum(one.killed for one in own):>8}{len(own) - excused:>6}{excused:>9}{timeouts:>10}")
    return lines


def _title(one: Tried) -> str:
    mutant = one.mutant
    return f"{mutant.path}, {mutant.function}, {mutant.operator}: {mutant.original} -> {mutant.mutated} ({mutant.occurrence})"


def _described(one: Tried) -> list[str]:
    """Return a survivor with its lines before and after, the tests that were run, and what to list to excuse it."""
    mutant = one.mutant
    before, after = one.source.decode().splitlines(), mutant.apply(one.source).decode().splitlines()
    changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ")]
    entry = [f"function: {mutant.function}", f"operator: {mutant.operator}"]
    entry += [f"original: {json.dumps(mutant.original)}", f"mutated: {json.dumps(mutant.mutated)}"]
    entry += [f"occurrence: {mutant.occurrence}"] * (mutant.occurrence > 1)
    return [
        f"survived: {mutant.path}, {mutant.function}, {mutant.operator}",
        *(f"    {line}" for line in changed),
        f"    tests: {' '.join(one.tests)}",
        f"    to excuse it: {{{', '.join(entry)}, reason: ...}}",
        "",
    ]
