"""The command report, its target, its call by the demo, and its removal."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from tests.helpers.run_logs import write_events
from tests.runs.test_manifest import run_dir, tiny_sections, train
from walt_pl.cli import demo
from walt_pl.cli.main import main

__all__ = ["run_dir", "tiny_sections"]  # fixtures


def test_report_command_writes_into_the_run_or_where_it_is_told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(run_dir, "vae")
    main(["report", str(run_dir)])
    assert capsys.readouterr().out == f"report: {run_dir / 'report.html'}, 0.0 MB\n"
    main(["report", str(run_dir), "--out", "elsewhere/a.html"])
    pages = [path.read_text().partition("Written")[0] for path in (run_dir / "report.html", Path("elsewhere/a.html"))]
    assert pages[0] == pages[1] and "1 of 4 stages are done." in pages[0], "sr1 and sr2 are of the experiment"


def test_report_command_counts_files_that_are_damaged(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(run_dir, "vae")
    path = write_events(run_dir / "training" / "vae" / "logs" / "version_0", {"train/loss": [(9, 1.0)]})
    path.write_bytes(path.read_bytes()[:-1])
    main(["report", str(run_dir)])
    assert capsys.readouterr().out.endswith(" MB, 1 files could not be read whole (listed at its end)\n")


def test_report_command_refuses_what_is_no_run_and_no_page(run_dir: Path) -> None:
    with pytest.raises(SystemExit, match=r"is no run, it has no manifest\.json; .* Type: python -m walt_pl report RUN"):
        main(["report", str(run_dir)])
    assert not run_dir.exists(), "stages of the experiment are no run"
    train(run_dir, "vae")
    with pytest.raises(SystemExit, match=r"--out must end in \.html, got a\.pdf"):
        main(["report", str(run_dir), "--out", "a.pdf"])


def test_make_report_names_the_run() -> None:
    command = subprocess.run(
        ["make", "--no-print-directory", "-n", "report", "RUN=runs/mine"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert command.rstrip().endswith("-m walt_pl report runs/mine")


def test_demo_says_where_the_report_is_and_how_long_it_took(run_dir: Path) -> None:
    train(run_dir, "vae")
    told = demo._report(run_dir)
    assert told.startswith(f"report: {run_dir / 'report.html'}, 0.0 MB, in ") and told.endswith(" s")
    assert (run_dir / "report.html").is_file()


def test_demo_goes_on_without_a_report(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("no font\x1b[31m")

    monkeypatch.setattr(demo, "describe_report", fail)
    assert demo._report(run_dir) == f"report: not written (no font\\x1b[31m); try again with: walt report {run_dir}"


def test_clean_removes_the_report_of_a_run(run_dir: Path) -> None:
    train(run_dir, "vae")
    main(["report", str(run_dir)])
    (run_dir / "training" / "vae" / "logs" / "version_0").mkdir(parents=True)
    (run_dir / "training" / "vae" / "logs" / "version_0" / "data_1.json").write_text("{}")
    main(["clean", "--run", str(run_dir)])
    assert not run_dir.exists()
