"""States, processor time and exit codes of processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from walt_pl.processes import exit_reason, is_stopped, process_use


@pytest.mark.parametrize(
    ("code", "reason"),
    [(None, "exit code None"), (0, "exit code 0"), (3, "exit code 3"), (-signal.SIGKILL, "SIGKILL"), (-signal.SIGSEGV, "SIGSEGV")],
)
def test_exit_reason_names_the_signal_or_the_code(code: int | None, reason: str) -> None:
    assert exit_reason(code) == reason


def test_process_use_measures_the_processor_time_of_all_threads() -> None:
    state, used = process_use(os.getpid())
    assert state == "R" and used == pytest.approx(time.process_time(), abs=0.2)


def until(process: int, state: str) -> None:
    """Wait until a process has a state."""
    end = time.monotonic() + 30
    while process_use(process)[0] != state:
        assert time.monotonic() < end, process_use(process)
        time.sleep(0.02)


def test_process_use_tells_a_stopped_process_from_one_that_sleeps_and_from_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        until(child.pid, "S")
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        until(child.pid, "T")
        assert is_stopped(child.pid)
    finally:
        child.kill()
        child.wait()
    assert process_use(child.pid) == ("", None)
