"""Two machines, a run with a trained autoencoder, and the training that nothing happens to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Pair, make_pair
from tests.helpers.starts import start
from tests.helpers.training import ADAMW, SHARDED, arguments, copy_parents
from walt_pl.runs.checkpoint import Checkpoint

STEPS = 16
START = 900.0
"""Seconds that a training may take to start, or to end, on busy processors."""


LENGTH = ["--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", str(STEPS)]


def make_slow(happened: Path) -> list[str]:
    """Return the options of a training that is slow from step 5 on, until a file says that the event of the test has happened."""
    return [
        "--trainer.callbacks",
        f"[{{class_path: tests.cluster.slow_start.SlowStart, init_args: {{step: 5, seconds: 10, until: {happened}}}}}]",
    ]


def train(*words: str, ranks: int = 1) -> None:
    """Train on this machine."""
    started = start("fit", *words, ranks=ranks)
    assert started.wait(START) == 0, started.said


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint of the base, 0 without one."""
    newest = Checkpoint.newest(run / "training" / "base" / "checkpoints")
    return newest.step if newest else 0


def assert_same_bytes(run: Path, whole: Path) -> None:
    mine, theirs = ((folder / "base" / "model.safetensors").read_bytes() for folder in (run, whole))
    assert mine == theirs


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect these tests for `make test-cluster` only: they need root, and packages of the system."""
    return None if "cluster" in config.option.markexpr else True


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two machines."""
    pair = make_pair(tmp_path / "machines")
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture(scope="session")
def parents(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder."""
    run = tmp_path_factory.mktemp("parents") / "run"
    few = ["--trainer.max_steps", "2", "--model.warmup_steps", "1", "--trainer.val_check_interval", "2"]
    train(*arguments("vae", run, painted, *few))
    return run


@pytest.fixture(scope="session")
def whole(painted: Path, parents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed training of the base under ZeRO 2, on two processes of one machine."""
    run = tmp_path_factory.mktemp("whole") / "run"
    copy_parents(parents, run, "base")
    train(*arguments("base", run, painted, *ADAMW, *SHARDED, *LENGTH), ranks=2)
    return run


@pytest.fixture
def run(parents: Path, tmp_path: Path) -> Path:
    """A run in which the base is not trained yet."""
    copy_parents(parents, tmp_path / "run", "base")
    return tmp_path / "run"
