"""`fit` as a process of `demo` and `paper`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT

# Stands for Python in `python -m walt_pl fit WORDS`: it ends with the code of its first word, or trains until a signal and then writes a
# checkpoint for some seconds, in which a second SIGINT ends it.
FIT = """#!{python}
import pathlib, signal, sys, time
assert sys.argv[1:4] == ["-m", "walt_pl", "fit"], sys.argv
folder, code = pathlib.Path(sys.argv[5]), int(sys.argv[4])
def stop(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    (folder / "told").touch()
    time.sleep(float(sys.argv[7]))
    (folder / "saved").touch()
    sys.exit(128 + number)
if code:
    sys.exit(code)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
(folder / "trains").touch()
time.sleep(float(sys.argv[6]))
"""
COMMAND = """
import signal, sys
from walt_pl.cli.run_fit import run_fit
signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: terminated"))
sys.executable = sys.argv[1]
run_fit(sys.argv[2:], "demo: the stage of vae.yaml")
print("next stage")
"""


class Command:
    """A command that runs `fit`, in a process group of its own, as a terminal starts it."""

    def __init__(self, folder: Path, code: int = 0, seconds: float = 60, saving: float = 1) -> None:
        stub = folder / "python"
        stub.write_text(FIT.format(python=sys.executable))
        stub.chmod(0o755)
        self.folder = folder
        words = [sys.executable, "-c", COMMAND, str(stub), str(code), str(folder), str(seconds), str(saving)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def until(self, name: str) -> None:
        end = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.02)

    def press(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said


TWO = """#!{python}
import os, pathlib, sys, time
print("threads", os.environ["OMP_NUM_THREADS"])
code, stage = sys.argv[4:]
pathlib.Path(stage).touch()
end = time.monotonic() + 50
while not os.path.exists({{"sr1": "sr2", "sr2": "sr1"}}[stage]):
    if time.monotonic() > end:
        sys.exit("the other does not train beside this one")
    time.sleep(0.02)
print("done")
sys.exit(int(code))
"""


def run_two(folder: Path, codes: tuple[int, int]) -> subprocess.CompletedProcess[str]:
    """Run `run_fits` with two trainings: each prints its threads, waits until the other one has begun, and ends with a code."""
    stub = folder / "python"
    stub.write_text(TWO.format(python=sys.executable))
    stub.chmod(0o755)
    trainings = {stage: [str(code), stage] for stage, code in zip(("sr1", "sr2"), codes, strict=True)}
    command = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from walt_pl.cli.run_fit import run_fits; sys.executable = {str(stub)!r}; "
    command += f"run_fits({trainings!r}, 'demo: stage'); print('scores')"
    return subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, text=True, timeout=120)


def test_run_fits_trains_side_by_side_and_names_the_stage_of_each_line(tmp_path: Path) -> None:
    ran = run_two(tmp_path, (0, 0))
    share = max(1, (os.cpu_count() or 1) // 2)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.strip().split("\n")
    for stage in ("sr1", "sr2"):
        assert [line for line in lines if line.startswith(stage)] == [f"{stage}: threads {share}", f"{stage}: done"]
    assert len(lines) == 5 and lines[-1] == "scores"


def test_run_fits_lets_the_others_end_where_one_fails(tmp_path: Path) -> None:
    ran = run_two(tmp_path, (3, 0))
    assert ran.returncode == 1 and "sr2: done" in ran.stdout and "scores" not in ran.stdout
    assert ran.stderr == "demo: stage sr1 stopped (exit code 3); the same command goes on from there\n"


@pytest.fixture
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    """A command whose training has begun; a parameter is the seconds that its checkpoint takes."""
    command = Command(tmp_path, saving=getattr(request, "param", 1))
    command.until("trains")
    time.sleep(0.3)  # on a busy machine the child may be ahead of the command that started it
    yield command
    if command.process.poll() is None:
        command.process.kill()


def test_run_fit_goes_on_after_a_training_that_ended(tmp_path: Path) -> None:
    assert Command(tmp_path, seconds=0).end() == (0, "next stage\n")


def test_run_fit_ends_the_command_where_fit_failed(tmp_path: Path) -> None:
    said = "demo: the stage of vae.yaml stopped (exit code 3); the same command goes on from there\n"
    assert Command(tmp_path, code=3).end() == (1, said)


def test_run_fit_waits_for_the_checkpoint_after_ctrl_c(command: Command) -> None:
    command.press()
    assert command.end() == (1, "demo: the stage of vae.yaml was interrupted; the same command goes on from there\n")
    assert (command.folder / "saved").exists()


@pytest.mark.parametrize("command", [40], indirect=True)
def test_run_fit_second_ctrl_c_ends_both_at_once(command: Command) -> None:
    command.press()
    command.until("told")
    time.sleep(2)  # Python's wait takes the first one after a quarter of a second
    command.press()
    assert command.end() == (1, "demo: the stage of vae.yaml was ended at once; the same command goes on from its last checkpoint\n")
    assert not (command.folder / "saved").exists()


def test_run_fit_passes_sigterm_on_and_waits_for_the_checkpoint(command: Command) -> None:
    command.process.terminate()
    assert command.end() == (1, "demo: terminated\n")
    assert (command.folder / "saved").exists()
