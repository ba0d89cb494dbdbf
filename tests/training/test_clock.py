"""A training, its checkpoints and `status` under a clock that goes backwards."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import starts
from tests.helpers.training import arguments
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.runs.manifest import Manifest


def run_while_the_clock_goes_back(words: Sequence[str]) -> None:
    """Run the program with a clock that is an hour earlier at each question, for Python's own time, too."""
    import datetime

    start, hours = time.time(), itertools.count()
    time.time = lambda: start - 3600 * next(hours)
    time.time_ns = lambda: int(time.time() * 1e9)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls.fromtimestamp(time.time(), tz)

    import walt_pl.lock
    import walt_pl.runs.checkpoint

    walt_pl.lock.datetime = Clock  # type: ignore[misc]
    walt_pl.runs.checkpoint.datetime = Clock  # type: ignore[misc]
    starts._program(words)


def test_fit_under_a_clock_that_goes_back_keeps_its_checkpoints_and_goes_on(painted: Path, tmp_path: Path) -> None:
    for steps, found in ((2, [1, 2]), (4, [3, 4])):
        more = ["--trainer.max_steps", str(steps), "--checkpoint.every_n_train_steps", "1"]
        more += ["--model.statistics_batches", "1", "--model.warmup_steps", "1"]
        started = starts.launch(run_while_the_clock_goes_back, ["fit", *arguments("vae", tmp_path / "run", painted, *more)])
        assert started.wait() == 0, started.said[-3000:]
        assert [one.step for one in Checkpoint.all(tmp_path / "run/training/vae/checkpoints")] == found
        assert Manifest.open(tmp_path / "run").state("vae") == "done"
    assert "going on from" in started.said and "step=00000002" in started.said
