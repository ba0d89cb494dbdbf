"""A painted set, small enough for every test that needs real files, made once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Walt = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of a small embedded set."""
    from walt_pl.data.shapes import write_set

    return write_set(tmp_path_factory.mktemp("shapes"), videos=16, images=20, validation=6, seed=3)


@pytest.fixture(scope="session")
def walt() -> Walt:
    """Runs the program as a user would: ``walt("status", "--run", ...)``."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "walt_pl", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}\nexit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    return run
