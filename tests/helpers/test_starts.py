"""The server of processes has imported what a program imports, so that each start takes a second and not ten."""

import contextlib
import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.starts import ROOT, fork_server

OWN = {"walt_pl", "stages", "datamodules", "tests", "__main__", "__mp_main__"}


def write_new_packages(words: list[str], found: Path) -> None:
    """Run the program in this process, and write the packages that it has imported."""
    os.chdir(ROOT)
    before = {name.partition(".")[0] for name in sys.modules}
    sys.argv = ["walt_pl", *words]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.suppress(SystemExit):
        runpy.run_module("walt_pl", run_name="__main__", alter_sys=True)
    packages = {name.partition(".")[0] for name in sys.modules} - before - OWN - sys.stdlib_module_names
    found.write_text(" ".join(sorted(packages)))


@pytest.mark.parametrize("words", [["status"], ["fit", "--config", "experiments/shapes/base.yaml", "--print_config"], ["sample", "--help"]])
def test_fork_server_has_the_packages_of_a_program(words: list[str], tmp_path: Path) -> None:
    process = fork_server().Process(target=write_new_packages, args=(words, tmp_path / "found"))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "found").read_text() == "", "add it to the list of tests/helpers/starts.py"
