"""Attack the program with damaged and hostile files, and print a table: ``python -m tests.attack [--share 0.1] [--seed N] [GROUP ...]``.

The seed is fixed by the commit unless it is given, and printed: the same commit is attacked in the same way.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import get_args

from rich.console import Console
from rich.table import Table

from tests.attack.groups import GROUPS
from tests.attack.outcome import Outcome, Verdict


def seed_of_commit() -> int:
    """Return a seed made of the commit of this checkout; 0 outside of git."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return int(done.stdout[:8], 16) if done.returncode == 0 else 0


def run_group(name: str, seed: int, share: float) -> list[Outcome]:
    """Run the attacks of one group in a folder of their own, and return their outcomes."""
    with tempfile.TemporaryDirectory(prefix="walt-attack-") as folder:
        return list(GROUPS[name](Random(f"{seed} {name}"), share, Path(folder)))


def main() -> int:
    """Run the groups, print the table, and return 1 if an attack had a wrong outcome."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"groups to run: {', '.join(GROUPS)} (all)")
    parser.add_argument("--share", type=float, default=1.0, help="share of each group's attacks")
    parser.add_argument("--seed", type=int, help="seed of the random choices (from the commit)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.groups) - set(GROUPS))
    if unknown:
        parser.error(f"no group {', '.join(unknown)}; there are: {', '.join(GROUPS)}")
    seed = seed_of_commit() if arguments.seed is None else arguments.seed
    print(f"attack: seed {seed}, share {arguments.share:g}", flush=True)
    verdicts = get_args(Verdict)
    table = Table("attack", "tried", *verdicts, "seconds")
    wrong: list[tuple[str, Outcome]] = []
    for name in arguments.groups or GROUPS:
        started = time.monotonic()
        outcomes = run_group(name, seed, arguments.share)
        counts = Counter(outcome.verdict for outcome in outcomes)
        table.add_row(name, str(len(outcomes)), *(str(counts[verdict]) for verdict in verdicts), f"{time.monotonic() - started:.0f}")
        print(f"{name}: {len(outcomes)} attacks, {counts['wrong']} wrong, {time.monotonic() - started:.0f} s", flush=True)
        wrong += [(name, outcome) for outcome in outcomes if outcome.verdict == "wrong"]
    Console().print(table)
    for name, outcome in wrong:
        print(f"WRONG {name}: {outcome.attack}: {outcome.detail}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
