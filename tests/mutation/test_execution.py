"""Mutants run in copies of the tree: verdicts, files put back, nothing left over; and an interrupted run goes on where it was."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tests.mutation.__main__ as program
from tests.mutation.execution import Copies, Job, Outcome, Results
from tests.mutation.targets import TargetError

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from pathlib import Path
from tests.mutation import execution
from tests.mutation.execution import Copies, Job, run_jobs
from tests.mutation.near_tests import NearTests

execution.IMPORTED = ()
near = (NearTests("tests/test_number.py", True, frozenset({"test_left_out"}), False),)
jobs = [Job(str(n), near, 5 if "while" in text else 200, "number.py", text.encode()) for n, text in enumerate(json.loads(sys.argv[2]))]
with Copies(Path(sys.argv[1]), 1) as copies:
    for job, outcome in run_jobs(copies, [Job("tree", near, 200), *jobs]):
        print("RESULT", json.dumps([job.name, outcome.verdict, outcome.test]))
assert not copies.folder.exists()
"""
NUMBER = "def number():\n    return 1  \n"
TESTS = """
import subprocess, sys
import number

def test_first():
    assert number.number() < 3

def test_second():
    assert number.number() == 1

def test_left_out():
    assert False

def test_process():
    code = "import number; raise SystemExit(number.number() != 1)"
    assert not subprocess.run([sys.executable, "-c", code]).returncode
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one file, with tests of it."""
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\npythonpath = ["."]\n')
    (root / "number.py").write_text(NUMBER)
    (root / "tests" / "test_number.py").write_text(TESTS)
    return root


def test_run_jobs_tells_killed_from_survived_and_puts_files_back(tree: Path) -> None:
    # All of one size, within one second: none is taken for another by its compiled file.
    texts = [NUMBER.replace("return 1  ", f"{code:<10}") for code in ("return 2", "return 1", "return 5", "import x", "while 1: 1")]
    ended = subprocess.run(
        [sys.executable, "-c", RUN, str(tree), json.dumps(texts)], cwd=ROOT, capture_output=True, text=True, timeout=1000
    )
    results = [json.loads(line[7:]) for line in ended.stdout.splitlines() if line.startswith("RESULT")]
    assert results == [
        ["tree", "survived", ""],
        ["0", "killed", "tests/test_number.py::test_second"],
        ["1", "survived", ""],
        ["2", "killed", "tests/test_number.py::test_first"],
        ["3", "killed", "tests/test_number.py::test_first"],
        ["4", "timeout", ""],
    ], ended.stderr[-2000:]
    assert not ended.returncode, ended.stderr[-2000:]
    assert (tree / "number.py").read_text() == NUMBER


class Interrupted(Exception):
    """Stands for the end of the process."""


class Runs:
    """In place of processes: every mutant is killed, and the run is cut off after some of them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.most = 10_000
        self.verdict = 1

    def __call__(self, copies: Copies, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        for job in jobs:
            if len(self.names) == self.most:
                raise Interrupted
            self.names.append(job.name)
            yield job, Outcome(0 if job.file is None else self.verdict, "tests/test_a.py::test", 1.0, 2.0, "output")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two files with tests of their names."""
    for name in ("a", "b"):
        (tmp_path / "lib").mkdir(exist_ok=True)
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "lib" / f"{name}.py").write_text("".join(f"def {name}{i}(x, y):\n    return x[y:] + f(x, y) * 2\n" for i in range(20)))
        (tmp_path / "tests" / f"test_{name}.py").write_text(f"import lib.{name}\n\ndef test(): ...\n")
    return tmp_path


def test_session_interrupted_resumes_and_later_runs_try_what_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs()
    monkeypatch.setattr(program, "run_jobs", runs)

    def run() -> int:
        """Start once more; return how many mutants were run."""
        before = len(runs.names)
        session = program.Session.choose(project, {"all": ["lib/*.py"]}, 40, 0)
        try:
            session.run(results := Results(project / "results.jsonl"), 2)
        except Interrupted:
            pass
        finally:
            text, _ = session.report(results)
        assert f"{len(session.chosen) - len(results.lines) + 2} have no result" in text or len(results.lines) >= 42
        return len(runs.names) - before

    runs.most = 12
    assert run() == 12  # two files of tests, ten mutants
    with (project / "results.jsonl").open("a") as file:
        file.write('{"key": "cut off')
    runs.most = 10_000
    assert run() == 30
    assert run() == 0
    (project / "tests" / "test_a.py").write_text("import lib.a\n\ndef test():\n    assert lib.a\n")
    of_a = sum(mutant.path == "lib/a.py" for _, mutant in program.Session.choose(project, {"all": ["lib/*.py"]}, 40, 0).chosen)
    assert run() == of_a + 1  # the mutants of its file, after the tests themselves
    (project / "lib" / "unrelated.py").write_text("")
    assert run() == 0


def test_session_repeats_broken_runs(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs()
    monkeypatch.setattr(program, "run_jobs", runs)
    session = program.Session.choose(project, {"all": ["lib/*.py"]}, 3, 0)
    runs.verdict = 4
    session.run(results := Results(project / "results.jsonl"), 1)
    assert "broken" in capsys.readouterr().out and "3 have no result" in session.report(results)[0]
    runs.verdict = 0
    session.run(results, 1)
    assert "0 of 3 killed" in session.report(results)[0]


def test_session_requires_tests_to_pass_on_the_unchanged_tree(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome(1, "tests/test_a.py::test", 1.0, 1.0, "E assert 0")
    monkeypatch.setattr(program, "run_jobs", lambda copies, jobs: ((job, outcome) for job in jobs))
    session = program.Session.choose(project, {"all": ["lib/*.py"]}, 3, 0)
    with pytest.raises(TargetError, match=r"must pass on the tree as it is, but tests/test_a\.py::test did not; mend it first"):
        session.run(Results(project / "results.jsonl"), 1)


def test_session_names_a_file_without_tests(project: Path) -> None:
    (project / "lib" / "c.py").write_text("def c(x, y):\n    return x + y\n" * 80)
    with pytest.raises(TargetError, match=r"no test imports lib/c\.py"):
        program.Session.choose(project, {"all": ["lib/*.py"]}, 160, 0)


def test_outcome_names_signals_and_failed_starts() -> None:
    codes = {
        0: "survived",
        1: "killed",
        2: "killed",
        3: "killed",
        4: "broken",
        5: "broken",
        70: "broken",
        -11: "killed",
        -24: "timeout",
        None: "timeout",
    }
    assert {code: Outcome(code, "", 0, 0, "").verdict for code in codes} == codes
