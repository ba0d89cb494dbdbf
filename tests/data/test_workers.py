"""Workers that native code kills or hangs: no sample is lost or repeated, and the file is named."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.helpers.environment import ROOT
from walt_pl.data import heartbeat
from walt_pl.data.batch import DataError, JointBatch, Sample, SampleRef
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler
from walt_pl.data.workers import Workers

pytestmark = pytest.mark.filterwarnings("ignore:.*of weight 0 so far")

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
        elif deed == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif deed == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif deed == "exit":
            os._exit(3)
        elif deed == "hang":
            time.sleep(3600)
        elif deed == "wait":
            time.sleep(2.5)
        elif deed == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
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


@pytest.mark.parametrize("deed", ["kill", "terminate", "segfault", "exit", "hang"])
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


@pytest.mark.parametrize(
    ("blow", "said"), [(signal.SIGSEGV, "killed by SIGSEGV"), (signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "no sign of life")]
)
def test_workers_replace_one_that_dies_or_stops_between_files_and_warn(blow: int, said: str, loaders: list[JointLoader]) -> None:
    loader = JointLoader(Treacherous({}), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), 1, patience=1)
    loaders.append(loader)
    batches = iter(loader)
    found = [next(batches)]
    time.sleep(0.5)  # what it reads ahead is read: it waits
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, blow)
    with pytest.warns(UserWarning, match=rf"ended while it read no file .*{said}") as caught:
        found += list(batches)
    assert blow != signal.SIGSTOP or f"process {pid} gave no sign of life" in str(caught[0].message)
    assert told(found) == told(load(loaders, {}, workers=0))[: len(found)]


def test_workers_that_are_all_ended_between_files_are_replaced(loaders: list[JointLoader]) -> None:
    """SLURM sends SIGTERM to every process of a job that is cancelled. The training still reads until its checkpoint."""
    loader = JointLoader(Treacherous({}), JointSampler(VIDEOS, 0, PER_BATCH, 0, seed=1), 4)
    loaders.append(loader)
    batches = iter(loader)
    found = [next(batches)]
    time.sleep(1)  # all batches ahead are read
    told_to_end = multiprocessing.active_children()
    assert len(told_to_end) == 4
    for process in told_to_end:
        process.terminate()
    with pytest.warns(UserWarning, match="ended while it read no file .*SIGTERM"):
        found += list(batches)
    assert told(found) == told(load(loaders, {}, workers=0))[: len(found)]


def test_workers_replace_one_that_is_stopped_inside_a_file(loaders: list[JointLoader], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"clip-5: still being read after 1 seconds; a new worker tries it once more"):
        found = load(loaders, {5: "stop"}, workers=2, once=tmp_path, timeout=1)
    assert told(found) == told(load(loaders, {}, workers=0))


def test_workers_replace_one_that_cannot_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walt_pl.data.workers.DYING", 0.5)
    workers = Workers(Treacherous({5: "hang"}, tmp_path), 1, timeout=1)
    batches = workers.read([[SampleRef("video", item, 0, 0)] for item in (1, 5, 2)])
    paths = [next(batches)[0].paths]
    lost = workers._workers[0].process
    with monkeypatch.context() as patched:
        patched.setattr(lost, "kill", lambda: None)
        watch = threading.Timer(20, os.kill, (lost.pid, signal.SIGKILL))  # the test fails, and does not hang
        watch.start()
        try:
            with pytest.warns(UserWarning, match=r"clip-5: still being read after 1 seconds; a new worker tries it once more"):
                paths += [answer[0].paths for answer in batches]
            assert lost.exitcode is None, "it was waited for"
        finally:
            watch.cancel()
            workers.close()
    lost.kill()
    lost.join()
    assert paths == [["clip-1"], ["clip-5"], ["clip-2"]]


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("hang", r"batch 0 of worker 0, process \d+; it reads clip-\d+, for \d+ seconds \(data.timeout is 3\)"),
        ("stop", r"batch 0 of worker 0, process \d+ and is stopped; it reads clip-\d+"),
    ],
)
def test_workers_tell_what_the_training_waits_for(
    deed: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "TOLD", 0.5)
    workers = Workers(Treacherous(dict.fromkeys(range(VIDEOS), deed), tmp_path), 1, timeout=3)
    try:
        with pytest.warns(UserWarning, match="once more"):
            next(workers.read([[SampleRef("video", 0, 0, 0)]]))
    finally:
        workers.close()
    lines = capsys.readouterr().err.splitlines()
    assert any(re.match(rf"waiting for data for \d+ seconds: {said}", line) for line in lines), "the first may be of a worker that starts"
    assert len(lines) <= 4, "seldom"


def test_loader_without_workers_tells_the_file_that_it_reads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(heartbeat, "TOLD", 0.1)
    list(islice(JointLoader(Treacherous({5: "wait"}), JointSampler(VIDEOS, 0, VIDEOS, 0, seed=1), 0), 1))
    assert "clip-5 (data.num_workers is 0)" in capsys.readouterr().err


def test_silence_counts_only_seconds_of_the_listener() -> None:
    silence = heartbeat.Silence()
    assert silence.limit(10) == heartbeat.START
    assert [silence.hear(beats, 1.0) for beats in (1, 1, 1, 2, 2)] == [0, 1, 2, 0, 1]
    assert silence.limit(10) == 10


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the signals that a process blocks are listed by /proc")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_workers_server_does_not_get_signals_that_slurm_sends_to_all_processes(number: signal.Signals) -> None:
    """They would kill it, and the last step before the checkpoint could start no workers."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})"
        + """
import os
from multiprocessing import forkserver, resource_tracker
from walt_pl.data import workers
workers.forkserver()
workers.forkserver()
print(os.getpid(), forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid)
for pid in (os.getpid(), forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid):
    masks = [int(line.split()[1], 16) for line in open(f"/proc/{pid}/status") if line.startswith(("SigBlk:", "SigIgn:"))]
    print(hex(masks[0] | masks[1]))
"""
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    blocked = [bool(int(mask, 16) >> (number - 1) & 1) for mask in said[-3:]]
    assert blocked == [False, True, True], "the training itself gets it"
