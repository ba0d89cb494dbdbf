"""Describe states, processor time and exit codes of processes; prepare their signals."""

import os
import signal
from pathlib import Path


def exit_reason(code: int | None) -> str:
    """Return the name of the signal that ended a process, such as SIGKILL, or "exit code N".

    Args:
        code: exit code, as `subprocess` and `multiprocessing` report it: negative for a signal.
    """
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def is_stopped(pid: int | None) -> bool:
    """Return whether a process is stopped by a signal, such as that of Ctrl-Z; false where there is no /proc."""
    return process_use(pid)[0] in ("T", "t")


def process_use(pid: int | None) -> tuple[str, float | None]:
    """Return the state of a process, and the processor time of all its threads in seconds.

    The state is the letter of /proc/PID/stat: R running or ready to run, S and D asleep, T and t stopped. Where there is no /proc, or no
    such process, it is "", and the time is None.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return state, (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return "", None


def prepare_worker_signals() -> None:
    """Prepare the signals of a process that works for another one: Ctrl-C is for that one, and SIGTERM ends this one.

    A server that forks it may block SIGTERM (`walt_pl.data.workers.forkserver`).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
