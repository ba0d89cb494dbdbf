"""Exit codes in words."""

import signal

import pytest

from walt_pl.processes import exit_reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [(None, "exit code None"), (0, "exit code 0"), (3, "exit code 3"), (-signal.SIGKILL, "SIGKILL"), (-signal.SIGSEGV, "SIGSEGV")],
)
def test_exit_reason_names_the_signal_or_the_code(code: int | None, reason: str) -> None:
    assert exit_reason(code) == reason
