"""`fit` as a process of `demo` and `ablate`."""

import subprocess
import sys

import pytest

from walt_pl.cli.run_fit import run_fit


@pytest.mark.parametrize(("code", "reason"), [(0, ""), (3, "exit code 3"), (-9, "SIGKILL")])
def test_run_fit_ends_the_command_where_fit_failed(code: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    if code:
        with pytest.raises(SystemExit) as ended:
            run_fit(["--config", "base.yaml"], "ablate: base.yaml")
        assert ended.value.code == f"ablate: base.yaml stopped ({reason}); the same command goes on from there"
    else:
        run_fit(["--config", "base.yaml"], "ablate: base.yaml")
    assert started == [[sys.executable, "-m", "walt_pl", "fit", "--config", "base.yaml"]]
