"""Tests near a file are found by imports and the mirrored folder, wherever they lie."""

from pathlib import Path

from tests.mutation.near_tests import Project

ROOT = Path(__file__).parents[2]
FILES = {
    "lib/__init__.py": "from lib.deep.solver import Solver\n",
    "lib/deep/__init__.py": "",
    "lib/deep/solver.py": "class Solver: ...\n",
    "lib/deep/other.py": "def other(): ...\n",
    "lib/user.py": "from lib.deep.other import other\n\ndef use():\n    other()\n",
    "lib/deep/alone.py": "from subprocess import run\n",
    "tests/conftest.py": "import subprocess\nimport pytest\n\n@pytest.fixture\ndef program():\n    return subprocess.run\n",
    "tests/helpers.py": "import multiprocessing\nfrom lib.deep import other\n\ndef start():\n    multiprocessing.Process()\n\nSIZE = 1\n",
    "tests/deep/test_solver.py": "def test_a():\n    from lib.deep.solver import Solver\n",
    "tests/deep/test_solver_outside.py": "import lib.deep.solver as s\n\ndef test_b(): ...\n",
    "tests/deep/test_third.py": "from lib.deep.solver import Solver\n\ndef test_c(): ...\n",
    "tests/test_passed_on.py": "from lib import Solver\n\ndef test_d(): ...\n",
    "tests/test_nothing.py": "def test_e(): ...\n",
    "tests/deep/test_indirect.py": "from lib.user import use\n\ndef test_f(): ...\n",
    "tests/test_helped.py": "from tests.helpers import SIZE, start\n\ndef test_quick():\n    assert SIZE\n\n"
    "def begin():\n    start()\n\ndef test_slow():\n    begin()\n\ndef test_program(program): ...\n",
    "tests/deep/test_alone.py": "from lib.deep.alone import run\nimport os\n\ndef test_g():\n    os.fork()\n",
    "tests/test_also.py": "from lib.deep.alone import run\n\ndef test_h(): ...\n",
}


def project(folder: Path, files: dict[str, str]) -> Project:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Project(folder)


def near(project: Project, source: str) -> list[str]:
    return [test.path for test in project.near(project.root / source)]


def test_near_tests_begin_with_the_mirrored_file(tmp_path: Path) -> None:
    found = near(project(tmp_path, FILES), "lib/deep/solver.py")
    mirrored = ["tests/deep/test_solver.py", "tests/deep/test_solver_outside.py"]
    assert found == [*mirrored, "tests/deep/test_third.py", "tests/test_passed_on.py"]


def test_near_tests_are_found_through_helpers_and_one_file_between(tmp_path: Path) -> None:
    assert near(project(tmp_path, FILES), "lib/deep/other.py") == ["tests/test_helped.py", "tests/deep/test_indirect.py"]


def test_near_tests_follow_a_move(tmp_path: Path) -> None:
    moved = {name.replace("deep", "shallow"): text.replace("lib.deep", "lib.shallow") for name, text in FILES.items()}
    before, after = project(tmp_path / "a", FILES), project(tmp_path / "b", moved)
    for source in ("lib/deep/solver.py", "lib/deep/other.py", "lib/deep/alone.py"):
        found = near(after, source.replace("deep", "shallow"))
        assert found == [test.replace("deep", "shallow") for test in near(before, source)] != []


def test_near_tests_leave_out_tests_that_start_a_process_where_there_are_others(tmp_path: Path) -> None:
    tree = project(tmp_path, FILES)
    helped = tree.near(tmp_path / "lib/deep/other.py")[0]
    assert helped.left_out == {"test_slow", "test_program"} and not helped.starts_processes
    also, alone = tree.near(tmp_path / "lib/deep/alone.py")  # all there is in the file of its name; it comes last
    assert (also.path, also.mirrored) == ("tests/test_also.py", False)
    assert (alone.path, alone.mirrored, alone.left_out, alone.starts_processes) == ("tests/deep/test_alone.py", True, frozenset(), True)


def test_digest_changes_with_a_test_and_its_helpers_only(tmp_path: Path) -> None:
    def digest() -> str:
        return Project(tmp_path).digest(["tests/test_helped.py"])

    project(tmp_path, FILES)
    before = digest()
    (tmp_path / "lib/user.py").write_text("x = 1\n")
    assert digest() == before
    (tmp_path / "tests/helpers.py").write_text("SIZE = 2\n")
    assert digest() != before


def test_near_tests_keep_tests_that_start_a_process_where_asked(tmp_path: Path) -> None:
    mixed = (
        "from lib.deep.solver import Solver\nimport subprocess\n\ndef test_quick(): ...\n\ndef test_slow():\n    subprocess.run(['x'])\n"
    )
    tree = project(tmp_path, {**FILES, "tests/deep/test_solver.py": mixed})
    solver = tmp_path / "lib/deep/solver.py"
    assert tree.near(solver)[0].left_out == {"test_slow"}
    kept = next(test for test in Project(tmp_path).near(solver, starting=True) if test.path == "tests/deep/test_solver.py")
    assert kept.left_out == frozenset() and kept.starts_processes
