"""Mutation testing: change the code in one place, run the tests near it, and see whether one of them fails.

    make mutants
    make mutants ARGS="--match Guidance.weight"

The sample depends on the code and the seed alone. Results are kept in runs/mutants; the same command goes on where it was, and runs
again what changed: a source file, or the tests near it. docs/TESTING.md tells how to read the report.
"""

import argparse
import hashlib
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported: a process with threads must not be forked

from tests.mutation.execution import Copies, Job, Outcome, Results, run_jobs
from tests.mutation.near_tests import NearTests, Project
from tests.mutation.operators import Mutant
from tests.mutation.report import Tried, render
from tests.mutation.targets import GROUPS, STARTING, TargetError, mutants_of, read_excuses, sample, stale_excuses

ROOT = Path(__file__).parents[2]
COUNT, SEED = 200, 0
LONGEST = 1200.0
"""Seconds that one file of tests may take on the tree as it is."""
MULTIPLE, LEAST = 3.0, 60.0
"""A mutant may take three times the seconds that its tests take on the tree as it is, and 60 more."""

Near = Mapping[str, tuple[NearTests, ...]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="mutants in the sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sample (default: %(default)s)")
    parser.add_argument("--match", default="", help="only mutants of the sample whose group, file or function contains this text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="mutants at a time (default: one a core)")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants" / "results.jsonl", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="only files with quick tests of their own name, and only these tests")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that copies and children go
    try:
        session = Session.choose(ROOT, GROUPS, asked.count, asked.seed, asked.match, asked.quick)
        results = Results(asked.results)
        session.run(results, asked.workers)
    except TargetError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    text, met = session.report(results)
    print(text)
    return 0 if met else 1


@dataclass(frozen=True)
class Session:
    """A sample of mutants with the tests near them."""

    project: Project
    pools: Mapping[str, Sequence[Mutant]]
    """All mutants of each group."""
    chosen: Sequence[tuple[str, Mutant]]
    """Group and mutant of the sample."""
    near: Near
    """Tests to run by source file."""

    @classmethod
    def choose(
        cls, root: Path, groups: Mapping[str, Sequence[str]], count: int, seed: int, match: str = "", quick: bool = False
    ) -> "Session":
        """Choose the sample.

        Args:
            root: folder of the project.
            groups: patterns of the files of each group.
            count: mutants in the sample.
            seed: of the sample.
            match: keep those of the sample whose group, file or function contains this text.
            quick: sample only from files that have a test file of their name that starts no process, and run only this one.

        Raises:
            TargetError: a pattern matches no file, there are too few mutants, or one has no tests.
        """
        project, pools = Project(root), mutants_of(root, groups)
        near = {
            path: tuple(project.near(root / path, starting=group in STARTING))
            for group, pool in pools.items()
            for path in {mutant.path for mutant in pool}
        }
        eligible: Mapping[str, Sequence[Mutant]] = pools
        if quick:
            near = {path: tuple(test for test in tests if test.mirrored and not test.starts_processes) for path, tests in near.items()}
            excused = {excuse.identity for excuse in read_excuses()}
            eligible = {
                group: [mutant for mutant in pool if near[mutant.path] and mutant.identity not in excused] for group, pool in pools.items()
            }
        chosen = [(group, mutant) for group, mutants in sample(eligible, count, seed).items() for mutant in mutants]
        chosen = [(group, mutant) for group, mutant in chosen if match in f"{group} {mutant.path} {mutant.function}"]
        untested = sorted({mutant.path for _, mutant in chosen if not near[mutant.path]})
        if untested:
            raise TargetError(f"mutants: no test imports {', '.join(untested)}; write tests of them, or take the files out of GROUPS")
        return cls(project, pools, chosen, near)

    def run(self, results: Results, workers: int) -> None:
        """Run the mutants that have no result yet, group by group; those whose tests start processes, which take minutes, come last."""
        waiting = {self.key(mutant): (group, mutant) for group, mutant in self.chosen if self.key(mutant) not in results.lines}
        total = sum(map(len, self.pools.values()))
        print(f"mutants: {len(self.chosen)} chosen of {total}, {len(waiting)} to run, {workers} at a time", flush=True)
        parts: dict[tuple[bool, str], dict[str, Mutant]] = defaultdict(dict)
        for key, (group, mutant) in waiting.items():
            slow = any(test.starts_processes for test in self.near[mutant.path])
            parts[slow, "" if slow else group][key] = mutant
        if waiting:
            with Copies(self.project.root, workers) as copies:
                for _, part in sorted(parts.items(), key=lambda item: item[0][0]):
                    self._run_part(part, results, copies)

    def _run_part(self, waiting: Mapping[str, Mutant], results: Results, copies: Copies) -> None:
        seconds = self.measure(results, [test for mutant in waiting.values() for test in self.near[mutant.path]], copies)
        jobs = []
        for key, mutant in waiting.items():
            limit = LEAST + MULTIPLE * sum(seconds[test] for test in self.near[mutant.path])
            content = mutant.apply(self.source(mutant))
            jobs.append(Job(key, self.near[mutant.path], limit, mutant.path, content))
        jobs.sort(key=lambda job: job.seconds)
        for number, (job, outcome) in enumerate(run_jobs(copies, jobs), start=1):
            mutant = waiting[job.name]
            what = f"{mutant.path} {mutant.function} {mutant.operator}"
            print(f"{number}/{len(jobs)} {outcome.verdict} {outcome.wall:.0f} s {what}", flush=True)
            if outcome.verdict == "broken":  # no result: the next run tries again
                print(outcome.output, flush=True)
            else:
                _note(results, job.name, outcome, identity=mutant.identity)

    def measure(self, results: Results, tests: Sequence[NearTests], copies: Copies) -> dict[NearTests, float]:
        """Run each file of tests on the tree as it is, and return the seconds that it takes.

        Raises:
            TargetError: one fails.
        """
        tree = self.project.digest()
        keys = {test: _hash(tree, test.path, sorted(test.left_out)) for test in tests}
        jobs = list({key: Job(key, (test,), LONGEST) for test, key in keys.items() if key not in results.lines}.values())
        if jobs:
            print(f"{len(jobs)} files of tests are run on the tree as it is", flush=True)
        for job, outcome in run_jobs(copies, jobs) if jobs else ():
            if outcome.code != 0:
                where = f"{job.tests[0].path} must pass on the tree as it is, but {outcome.test or 'it'} did not"
                raise TargetError(f"mutants: {where}; mend it first (make test):\n{outcome.output}")
            _note(results, job.name, outcome)
        return {test: float(results.lines[key]["wall"]) for test, key in keys.items()}

    def report(self, results: Results) -> tuple[str, bool]:
        """Return the report of what has a result, and whether the goal is met."""
        tried = []
        for group, mutant in self.chosen:
            known = results.lines.get(self.key(mutant), {"verdict": "not run", "wall": 0.0, "cpu": 0.0})
            tests = tuple(test.path for test in self.near[mutant.path])
            tried.append(Tried(group, mutant, tests, self.source(mutant), known["verdict"], known["wall"], known["cpu"]))
        excuses = read_excuses()
        return render(tried, excuses, stale_excuses(excuses, self.pools))

    def source(self, mutant: Mutant) -> bytes:
        """Return the file of a mutant as it was when the mutants were generated."""
        return self.project.sources[self.project.root / mutant.path].content

    def key(self, mutant: Mutant) -> str:
        """Return what a result is kept under: it holds as long as the mutant, its file and its near tests are what they were."""
        tests = self.near[mutant.path]
        left_out = [(test.path, sorted(test.left_out)) for test in tests]
        return _hash(mutant.identity, self.project.digest([mutant.path]), self.project.digest([test.path for test in tests]), left_out)


def _note(results: Results, key: str, outcome: Outcome, **entry: object) -> None:
    results.add(key, verdict=outcome.verdict, wall=round(outcome.wall, 2), cpu=round(outcome.cpu, 2), test=outcome.test, **entry)


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
