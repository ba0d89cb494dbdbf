"""Workers that native code kills or hangs: no sample is lost or repeated, and the file is named."""

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from walt_pl.data.batch import DataError, JointBatch, Sample, SampleRef
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler
from walt_pl.data.workers import Workers

pytestmark = pytest.mark.filterwarnings("ignore:.*unreadable files")

VIDEOS, PER_BATCH = 12, 3


class Treacherous:
    """Clips whose content is their number. Reading item n does what `deeds` says, each time or (with `once`) the first time only."""

    def __init__(self, deeds: dict[int, str], once: Path | None = None) -> None:
        self.deeds, self.once = deeds, once

    def __getitem__(self, draw: SampleRef) -> Sample:
        deed = self.deeds.get(draw.item, "")
        if deed and self.once is not None:
            mark = self.once / str(draw.item)
            deed = "" if mark.exists() else deed
            mark.touch()
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif deed == "exit":
            os._exit(3)
        elif deed == "hang":
            time.sleep(3600)
        elif deed == "bug":
            raise TypeError("a mistake of ours")
        elif deed == "fail":
            return self.replace_failed(draw, f"clip-{draw.item}: broken")
        return self._sample(draw, float(draw.item + 1), "")

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        return self._sample(draw, 0.0, reason)

    def _sample(self, draw: SampleRef, value: float, failure: str) -> Sample:
        return Sample(draw, torch.full((1, 2, 1, 1), value), None, str(draw.epoch), draw.item, f"clip-{draw.item}", failure, "pixels")


@pytest.fixture
def loaders() -> Iterator[list[JointLoader]]:
    """Loaders whose workers are ended after the test."""
    made: list[JointLoader] = []
    yield made
    for loader in made:
        loader.close()


def load(
    loaders: list[JointLoader], deeds: dict[int, str], workers: int, epochs: int = 2, once: Path | None = None, timeout: float = 60
) -> list[JointBatch]:
    loader = JointLoader(Treacherous(deeds, once), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), workers, timeout)
    loaders.append(loader)
    return [batch for _ in range(epochs) for batch in loader]


def told(batches: list[JointBatch]) -> list[tuple[list[str], list[float], list[float]]]:
    return [(batch.paths, batch.weight.tolist(), batch.videos.flatten(1)[:, 0].tolist()) for batch in batches]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_of_any_number_give_the_order_of_none(workers: int, loaders: list[JointLoader]) -> None:
    assert told(load(loaders, {}, workers)) == told(load(loaders, {}, workers=0))


@pytest.mark.parametrize("deed", ["kill", "segfault", "exit", "hang"])
def test_workers_replace_one_that_dies_once_and_lose_or_repeat_nothing(deed: str, loaders: list[JointLoader], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"clip-5: .*tries it once more"):
        found = load(loaders, {5: deed}, workers=2, once=tmp_path, timeout=1)
    assert told(found) == told(load(loaders, {}, workers=0))


@pytest.mark.parametrize(
    ("deed", "reason"),
    [("kill", "killed by SIGKILL"), ("segfault", "killed by SIGSEGV"), ("exit", "exit code 3"), ("hang", "after 1 seconds")],
)
def test_workers_give_weight_0_to_a_file_that_kills_twice_and_never_read_it_again(
    deed: str, reason: str, loaders: list[JointLoader]
) -> None:
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(loaders, {5: deed}, workers=2, epochs=4, timeout=1)
    # Equal to the answers when the file had been found broken by its decoder.
    assert told(found) == told(load(loaders, {5: "fail"}, workers=0, epochs=4))
    assert sum(weight == 0 for _, weights, _ in told(found) for weight in weights) == 4
    failure = loaders[0].failures["clip-5"]
    assert failure.startswith("clip-5: ") and reason in failure and "second time" in failure
    assert sum("once more" in str(warning.message) for warning in caught) == 1
    assert time.monotonic() - began < 30


def test_workers_lose_only_the_files_that_kill_in_one_batch(loaders: list[JointLoader]) -> None:
    deeds = dict.fromkeys(range(0, VIDEOS, 2), "kill")
    with pytest.warns(UserWarning):
        found = load(loaders, deeds, workers=1, epochs=1)
    assert told(found) == told(load(loaders, dict.fromkeys(deeds, "fail"), workers=0, epochs=1))


def test_workers_resume_exactly_after_crashes(loaders: list[JointLoader], tmp_path: Path) -> None:
    wanted = told(load(loaders, {}, workers=0))
    first = JointLoader(Treacherous({5: "kill", 7: "kill"}, tmp_path), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), 2)
    loaders.append(first)
    with pytest.warns(UserWarning):
        start = list(islice(first, 3))
        state = first.state_dict()
        second = JointLoader(Treacherous({}), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), 0)
        second.load_state_dict(state)
        assert told(start) + told([batch for _ in range(2) for batch in second])[:5] == wanted


def test_workers_keep_the_order_after_an_epoch_that_was_broken_off(loaders: list[JointLoader]) -> None:
    loader = JointLoader(Treacherous({}), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), 2)
    loaders.append(loader)
    found = []
    for length in (1, 3, 4):
        found += list(islice(loader, length))
    assert told(found) == told(load(loaders, {}, workers=0))


def test_workers_raise_on_a_program_error(loaders: list[JointLoader]) -> None:
    with pytest.raises(DataError, match=r"(?s)clip-5: .*TypeError: a mistake of ours"):
        load(loaders, {5: "bug"}, workers=1)


class Unstartable(Treacherous):
    """Cannot even be unpickled by a worker."""

    def __setstate__(self, state: object) -> None:
        os._exit(1)


def test_workers_that_die_before_they_read_end_the_training(loaders: list[JointLoader]) -> None:
    loader = JointLoader(Unstartable({}), JointSampler(VIDEOS, 0, PER_BATCH, 0), 1)
    loaders.append(loader)
    with pytest.raises(DataError, match="3 workers in a row died before they could read a file"):
        next(iter(loader))


def test_workers_replace_one_that_dies_between_files_and_warn(loaders: list[JointLoader]) -> None:
    loader = JointLoader(Treacherous({}), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), 1)
    loaders.append(loader)
    batches = iter(loader)
    found = [next(batches)]
    time.sleep(0.5)  # what it reads ahead is read: it waits
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSEGV)
    with pytest.warns(UserWarning, match=r"ended while it read no file .*killed by SIGSEGV"):
        found += list(batches)
    assert told(found) == told(load(loaders, {}, workers=0))[: len(found)]


def test_workers_end_when_the_loader_is_closed(loaders: list[JointLoader]) -> None:
    load(loaders, {}, workers=2, epochs=1)
    assert len(multiprocessing.active_children()) == 2
    loaders[0].close()
    assert not multiprocessing.active_children()


def test_workers_prefetch_is_bounded_while_one_file_hangs() -> None:
    asked: list[int] = []

    def steps() -> Iterator[list[SampleRef]]:
        for number in range(100):
            asked.append(number)
            yield [SampleRef("video", number, 0, 0)]

    workers = Workers(Treacherous({0: "hang"}), 2, timeout=1)
    try:
        with pytest.warns(UserWarning, match="clip-0"):
            next(workers.read(steps()))
        assert len(asked) == 4
    finally:
        workers.close()
