"""Describe exit codes of processes in words."""

import signal


def exit_reason(code: int | None) -> str:
    """Return the name of the signal that ended a process, such as SIGKILL, or "exit code N".

    Args:
        code: exit code, as `subprocess` and `multiprocessing` report it: negative for a signal.
    """
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
