"""Jobs in processes of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from walt_pl.indexing import isolated_pool
from walt_pl.indexing.isolated_pool import LostJob, run_isolated

SLEEP, ABORT = "__import__('time').sleep(300)", "__import__('os').abort()"


def outcomes(jobs: list[str], workers: int = 2, seconds: float = 30.0, **options: object) -> dict[str, object]:
    return dict(run_isolated(eval, jobs, workers, lambda job: 1.0 if job == SLEEP else seconds, **options))  # type: ignore[arg-type]


def test_run_isolated_finishes_other_jobs_after_a_hang_and_a_crash() -> None:
    jobs = [
        "1 + 1",
        ABORT,
        "2 + 2",
        SLEEP,
        "__import__('os').kill(__import__('os').getpid(), 9)",
        *(f"{number} * 1" for number in range(20)),
    ]
    started = time.monotonic()
    found = outcomes(jobs)
    assert time.monotonic() - started < 30
    assert set(found) == set(jobs) and found["2 + 2"] == 4 and found["19 * 1"] == 19
    assert found[SLEEP] == LostJob("hang", "not decoded within 1 seconds")
    crashes = {job: outcome for job, outcome in found.items() if isinstance(outcome, LostJob) and outcome.finding == "crash"}
    assert {lost.reason.split("with ")[1] for lost in crashes.values()} == {"SIGABRT", "SIGKILL (out of memory?)"}


def test_run_isolated_retries_a_lost_job_in_another_way() -> None:
    assert outcomes([ABORT, "3"], retry=lambda job: "'instead'" if job == ABORT else None) == {"'instead'": "instead", "3": 3}


def test_run_isolated_gives_the_job_of_a_stopped_process_to_another_one(tmp_path: Path) -> None:
    stop = f"(open('{tmp_path}/a', 'w'), __import__('os').kill(__import__('os').getpid(), 19))"
    stop_once = f"1 if __import__('os').path.exists('{tmp_path}/a') else {stop}"
    with pytest.warns(UserWarning, match=r"process \d+ was stopped by a signal: another one takes its file"):
        assert outcomes([stop_once, "3"], seconds=2.0) == {stop_once: 1, "3": 3}


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
    running = run_isolated(eval, ["__import__('os').getpid()", SLEEP], 2, lambda job: 60.0)
    _, process = next(running)
    running.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(process)), 0)
