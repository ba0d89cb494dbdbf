"""Mutation testing: change the code in one place, run the tests near it, and see whether one of them fails.

    make mutants
    make mutants ARGS="--match Guidance.weight"

The sample, 200 mutants, depends on the code and the seed alone. Results are kept in runs/mutants; the same command goes on where it was, and
runs again what changed: a source file, or the tests near it. docs/TESTING.md tells how to read the report.
"""

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported: a process with threads must not be forked

from tests.mutation.execution import Job, Outcome, Results, run_jobs
from tests.mutation.near_tests import NearTests, Project
from tests.mutation.operators import Mutant
from tests.mutation.report import Tried, render
from tests.mutation.targets import TargetError, mutants_of, read_excuses, sample, stale_excuses

ROOT = Path(__file__).parents[2]
COUNT, SEED = 200, 0
LONGEST = 1200.0
"""Seconds that one file of tests may take on the tree as it is."""
MULTIPLE, LEAST = 5.0, 30.0
"""A mutant may take five times the seconds that its tests take on the tree as it is, and 30 more."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="mutants in the sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sample (default: %(default)s)")
    parser.add_argument("--match", default="", help="only mutants of the sample whose group, file or function contains this text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="mutants at a time (default: one a core)")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants" / "results.jsonl", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="only mutants whose file has tests of its own name, and only these tests")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that copies and children go
    try:
        return run(ROOT, asked)
    except TargetError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


def run(root: Path, asked: argparse.Namespace) -> int:
    """Run what has no result yet, print the report, and return the exit code."""
    project, pools, excuses, results = Project(root), mutants_of(root), read_excuses(), Results(asked.results)
    near = {mutant.path: tuple(project.near(root / mutant.path)) for pool in pools.values() for mutant in pool}
    if asked.quick:
        near, pools = _quick(near, pools, {excuse.identity for excuse in excuses})
    chosen = [(group, mutant) for group, mutants in sample(pools, asked.count, asked.seed).items() for mutant in mutants]
    chosen = [(group, mutant) for group, mutant in chosen if asked.match in f"{group} {mutant.path} {mutant.function}"]
    lacking = sorted({mutant.path for _, mutant in chosen if not near[mutant.path]})
    if lacking:
        raise TargetError(f"mutants: no test imports {', '.join(lacking)}; write tests of them, or take the files out of GROUPS")
    keys = {mutant: _key(project, mutant, near[mutant.path]) for _, mutant in chosen}
    waiting = [mutant for _, mutant in chosen if keys[mutant] not in results.lines]
    print(f"mutants: {len(chosen)} chosen of {sum(map(len, pools.values()))}, {len(waiting)} to run, {asked.workers} at a time", flush=True)
    if waiting:
        seconds = measure(project, results, [test for mutant in waiting for test in near[mutant.path]], asked.workers)
        jobs = {}
        for mutant in waiting:
            limit = LEAST + MULTIPLE * sum(seconds[test] for test in near[mutant.path])
            content = mutant.apply((root / mutant.path).read_bytes())
            jobs[keys[mutant]] = Job(keys[mutant], near[mutant.path], limit, mutant.path, content), mutant
        quickest_first = sorted((job for job, _ in jobs.values()), key=lambda job: job.seconds)
        for number, (job, outcome) in enumerate(run_jobs(root, quickest_first, asked.workers), start=1):
            mutant = jobs[job.name][1]
            _note(results, job.name, outcome, identity=mutant.identity)
            print(
                f"{number}/{len(jobs)} {outcome.verdict} {outcome.wall:.0f} s {mutant.path} {mutant.function} {mutant.operator}", flush=True
            )
    tried = []
    for group, mutant in chosen:
        known = results.lines.get(keys[mutant], {"verdict": "not run", "wall": 0.0, "cpu": 0.0})
        tests = tuple(test.path for test in near[mutant.path])
        source = (root / mutant.path).read_bytes()
        tried.append(Tried(group, mutant, tests, source, known["verdict"], known["wall"], known["cpu"]))
    text, met = render(tried, excuses, stale_excuses(excuses, mutants_of(root)))
    print(text)
    return 0 if met else 1


def measure(project: Project, results: Results, tests: Sequence[NearTests], workers: int) -> dict[NearTests, float]:
    """Run each file of tests on the tree as it is, and return the seconds that it takes.

    Raises:
        TargetError: one fails.
    """
    tree = project.digest()
    keys = {test: hashlib.sha256(repr((tree, test.path, sorted(test.left_out))).encode()).hexdigest() for test in tests}
    jobs = list({key: Job(key, (test,), LONGEST) for test, key in keys.items() if key not in results.lines}.values())
    if jobs:
        print(f"mutants: {len(jobs)} files of tests are run on the tree as it is", flush=True)
    for job, outcome in run_jobs(project.root, jobs, workers) if jobs else ():
        if outcome.code != 0:
            raise TargetError(
                f"mutants: {job.tests[0].path} must pass on the tree as it is, but {outcome.test or 'it'} did not:\n{outcome.output}"
            )
        _note(results, job.name, outcome)
    return {test: float(results.lines[key]["wall"]) for test, key in keys.items()}


def _note(results: Results, key: str, outcome: Outcome, **entry: object) -> None:
    results.add(key, verdict=outcome.verdict, wall=round(outcome.wall, 2), cpu=round(outcome.cpu, 2), test=outcome.test, **entry)


def _key(project: Project, mutant: Mutant, tests: Sequence[NearTests]) -> str:
    """Return what a result is kept under: it holds as long as the mutant, its file and its near tests are what they were."""
    left_out = [(test.path, sorted(test.left_out)) for test in tests]
    told = (mutant.identity, project.digest([mutant.path]), project.digest([test.path for test in tests]), left_out)
    return hashlib.sha256(repr(told).encode()).hexdigest()


Near = Mapping[str, tuple[NearTests, ...]]


def _quick(
    near: Near, pools: Mapping[str, Sequence[Mutant]], excused: set[tuple[str, str, str, str, int]]
) -> tuple[Near, Mapping[str, Sequence[Mutant]]]:
    """Keep tests of the file's own name that start no process, and the mutants of files that have such; leave excused ones out."""
    near = {path: tuple(test for test in tests if test.mirrored and not test.left_out) for path, tests in near.items()}
    return near, {
        group: [mutant for mutant in pool if near[mutant.path] and mutant.identity not in excused] for group, pool in pools.items()
    }


if __name__ == "__main__":
    sys.exit(main())
