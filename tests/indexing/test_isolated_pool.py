"""Jobs in processes of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from walt_pl.indexing import isolated_pool
from walt_pl.indexing.isolated_pool import LostJob, give_sign, run_isolated

SLEEP, ABORT = "__import__('time').sleep(300)", "__import__('os').abort()"
SPIN = "any(False for _ in iter(int, 1))"


def outcomes(jobs: list[str], workers: int = 2, seconds: float = 30.0, **options: object) -> dict[str, object]:
    return dict(run_isolated(eval, jobs, workers, seconds, **options))  # type: ignore[arg-type]


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def find_frames(job: tuple[int, float]) -> int:
    """A decoder that finds so many frames and needs so many seconds for each."""
    frames, seconds = job
    for _ in range(frames):
        burn(seconds)
        give_sign()
    return frames


def test_run_isolated_finishes_other_jobs_after_a_hang_and_a_crash() -> None:
    jobs = [
        "1 + 1",
        ABORT,
        "2 + 2",
        SPIN,
        "__import__('os').kill(__import__('os').getpid(), 9)",
        *(f"{number} * 1" for number in range(20)),
    ]
    started = time.monotonic()
    found = outcomes(jobs, seconds=0.5)
    assert time.monotonic() - started < 30
    assert set(found) == set(jobs) and found["2 + 2"] == 4 and found["19 * 1"] == 19
    assert found[SPIN] == LostJob("hang", "nothing new for 0.5 s of processor time")
    crashes = {job: outcome for job, outcome in found.items() if isinstance(outcome, LostJob) and outcome.finding == "crash"}
    assert {lost.reason.split("with ")[1] for lost in crashes.values()} == {"SIGABRT", "SIGKILL (out of memory?)"}


def test_run_isolated_limits_the_time_between_two_signs_not_that_of_a_job() -> None:
    slow, stuck = (10, 0.05), (1, 60.0)
    found = dict(run_isolated(find_frames, [slow, stuck], 1, 0.3))
    assert found == {slow: 10, stuck: LostJob("hang", "nothing new for 0.3 s of processor time")}


def test_run_isolated_ends_a_job_that_gives_signs_without_end() -> None:
    endless, total = (10**9, 0.001), (10, 0.01)
    found = dict(run_isolated(find_frames, [endless, total], 1, 5.0, total=lambda job: 0.5))
    assert found == {endless: LostJob("hang", "not decoded within 0.5 s of processor time"), total: 10}


def test_run_isolated_counts_no_time_in_which_the_process_waits() -> None:
    nap = "__import__('time').sleep(1) or 1"
    found = outcomes([nap, SLEEP], seconds=0.2)
    assert found == {nap: 1, SLEEP: LostJob("hang", "nothing new for 2 s, in which its process slept: does its disk answer?")}


def test_run_isolated_counts_no_time_in_which_the_caller_was_away() -> None:
    running = run_isolated(eval, ["1", "__import__('time').sleep(2) or 2"], 2, 0.1)
    assert next(running) == ("1", 1)
    time.sleep(1.5)
    assert next(running)[1] == 2


def test_give_sign_does_nothing_outside_of_the_pool() -> None:
    give_sign()


def test_run_isolated_retries_a_lost_job_in_another_way() -> None:
    assert outcomes([ABORT, "3"], retry=lambda job: "'instead'" if job == ABORT else None) == {"'instead'": "instead", "3": 3}


def test_run_isolated_gives_the_job_of_a_stopped_process_to_another_one(tmp_path: Path) -> None:
    stop = f"(open('{tmp_path}/a', 'w'), __import__('os').kill(__import__('os').getpid(), 19))"
    stop_once = f"1 if __import__('os').path.exists('{tmp_path}/a') else {stop}"
    with pytest.warns(UserWarning, match=r"process \d+ was stopped by a signal: another one takes its file"):
        assert outcomes([stop_once, "3"], seconds=0.5) == {stop_once: 1, "3": 3}


def test_run_isolated_replaces_a_process_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_pool, "START", 0.0)
    with pytest.warns(UserWarning, match="did not begin"), pytest.raises(RuntimeError, match="3 worker processes in a row"):
        outcomes(["1"], workers=1)


def test_run_isolated_raises_an_error_of_the_function() -> None:
    with pytest.raises(ZeroDivisionError):
        outcomes(["1 / 0"])


def test_run_isolated_limits_the_memory_of_a_job() -> None:
    with pytest.raises(MemoryError):
        outcomes(["bytearray(9 << 30)"], workers=1)


def test_run_isolated_processes_end_with_the_caller() -> None:
    running = run_isolated(eval, ["__import__('os').getpid()", SLEEP], 2, 60.0)
    _, process = next(running)
    running.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(process)), 0)
