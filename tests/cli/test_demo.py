"""`make demo` without its work: the order of its parts, and the files at its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs.test_manifest import run_dir, tiny_sections, train
from walt_pl.cli import demo

__all__ = ["run_dir", "tiny_sections"]  # fixtures


def test_demo_writes_summary_and_report_after_the_last_part(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Painting, training, sampling and scoring leave nothing but finished stages here."""
    parts: list[str] = []

    def do(part: str, result: Any) -> Any:
        assert not (run_dir / "report.html").exists(), f"the report lacks {part}"
        parts.append(part)
        return result

    monkeypatch.setattr(demo, "write_set", lambda data: do("paint", data / "index.parquet"))
    monkeypatch.setattr(demo, "_train", lambda run, configs: do("train", train(run, *configs)))
    monkeypatch.setattr(demo, "_show", lambda *_: do("sample", 16))
    monkeypatch.setattr(demo, "evaluate_run", lambda *_, **__: do("score", {"scores": {"base": {"shape": 0.75}}}))
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    demo.run_demo(run_dir, Path("experiments/shapes"), Path("data/shapes"))
    assert parts == ["paint", "train", "train", "train", "sample", "score"], "super-resolution stages train side by side"
    summary = json.loads((run_dir / "demo" / "summary.json").read_text())
    assert (summary["scores"], summary["samples"]) == ({"base": {"shape": 0.75}}, 16)
    assert "4 of 4 stages are done." in (run_dir / "report.html").read_text()
    assert capsys.readouterr().out.strip().split("\n")[-1].startswith(f"report: {run_dir / 'report.html'}, ")
