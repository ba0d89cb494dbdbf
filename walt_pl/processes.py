"""Describe states and exit codes of processes."""

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
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
