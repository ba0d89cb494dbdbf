"""The kept results of both benchmarks, and the files of benchmarks/autoencoder.py."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import benchmarks.gpu.report
import benchmarks.gpu.results
from benchmarks import autoencoder
from tests.helpers.environment import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
RENDERERS: dict[Any, Any] = {
    benchmarks.gpu.results.FORMAT: benchmarks.gpu.report.render,
    autoencoder.FORMAT: autoencoder.render,
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_kept_page_is_rendered_from_its_json(path: Path) -> None:
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == RENDERERS[result["format"]](result)


def test_autoencoder_quick_writes_json_and_page_beside_those_of_the_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["autoencoder", "--quick", "--only", "ours_light", "--out", str(tmp_path / "new")])
    autoencoder.main()
    autoencoder.main()
    first, second = sorted((tmp_path / "new").glob("*.json"), key=lambda path: len(path.stem))
    assert second.stem == f"{first.stem}_2" and first.stem.startswith("autoencoder_") and "_quick_" in first.stem
    result = json.loads(first.read_text())
    assert result["format"] == autoencoder.FORMAT and result["facts"]["size"] == [5, 32]
    page = first.with_suffix(".md").read_text()
    assert page == autoencoder.render(result) and page in capsys.readouterr().out
    rate = result["autoencoders"]["ours_light"]["decode_image"]["gflop_per_s"]
    assert f"| decode, image | {rate} |" in page


def test_autoencoder_page_names_the_autoencoders_without_a_package() -> None:
    kept = json.loads(next(path for path in RESULTS if path.stem.startswith("autoencoder_")).read_text())
    kept["autoencoders"]["wan"] = None
    page = autoencoder.render(kept)
    assert "- Wan 2.1: skipped, diffusers is not installed" in page and "| Wan 2.1" not in page and "| CogVideoX" in page


def test_autoencoder_ceiling_is_the_best_of_as_many_rounds_as_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each first round is slow. One slow round of the convolutions beside the best pass would give a share of 9."""
    rounds: dict[bool, list[float]] = {True: [], False: []}

    def scripted(call: Any, device: torch.device) -> float:
        is_convolution = isinstance(call, partial)
        rounds[is_convolution].append(1.0 if rounds[is_convolution] else 9.0)
        return rounds[is_convolution][-1]

    monkeypatch.setattr(autoencoder, "seconds", scripted)
    kernel = torch.randn(4, 3, 3, 3)
    found = autoencoder.measure(lambda x: F.conv2d(x, kernel), torch.randn(1, 3, 8, 8), frames=1, rounds=3, peak=1.0)
    assert found["share_of_convolutions_alone"] == 1.0 and found["seconds"] == 1.0
    assert {name: len(seen) for name, seen in rounds.items()} == {True: 3, False: 3}


def test_gpu_measurement_does_not_go_on_with_an_autoencoder_result(tmp_path: Path) -> None:
    facts = {"card": "Card", "quick": False, "date": "2026-11-27"}
    (tmp_path / "card_2026-11-27.json").write_text(json.dumps({"format": autoencoder.FORMAT, "facts": {}, "autoencoders": {}}))
    path, result = benchmarks.gpu.results.go_on_with(tmp_path, facts)
    assert path == tmp_path / "card_2026-11-27_2.json" and result["parts"] == {}
