"""Promises of the results of a run: whole files, curves, and an artifact's card that leaves the run as it was."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.evaluation.test_card import CARD
from walt_pl import files
from walt_pl.cli.main import main
from walt_pl.evaluation.card import MetricCard, read_cards
from walt_pl.evaluation.prediction import LINEAR, MODEL, REPEATED
from walt_pl.evaluation.prediction_record import PredictionFigures, VideoMean
from walt_pl.evaluation.results import record_prediction, record_results
from walt_pl.runs import artifact
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.card import ArtifactError, card_text, read_card
from walt_pl.runs.evaluations import KEPT, add_evaluations
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.status import status_rows, verify_run


@dataclass(frozen=True)
class TinyConfig:
    width: int = 2


class Tiny(nn.Linear):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config.width, config.width)
        self.config = config


def train(run: Path, stage: str, parents: Mapping[str, str] | None = None, value: float = 1.0) -> str:
    """Finish a stage of 7 steps as the program does, and return the hash of its weights."""
    model = Tiny(TinyConfig())
    torch.nn.init.constant_(model.weight, value)
    torch.nn.init.constant_(model.bias, value)
    manifest = Manifest.open(run)
    manifest.start(stage, parents or {})
    card = {"parents": dict(parents or {}), "steps": 7, "metrics": {"protocol": "averaged weights", "values": {"val/psnr": 30.0}}}
    section = {"vae": "vae"}.get(stage, "denoiser")
    sha256 = save_artifact(
        run / stage, kind={"vae": "vae"}.get(stage, "base"), models={section: model}, sampling_config={}, card=card, train_config=""
    )
    manifest.finish(stage, run / stage)
    return sha256


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run with a vae and a base."""
    names = (__name__, "Tiny", "TinyConfig")
    monkeypatch.setattr(artifact, "COMPONENTS", {"vae": names, "denoiser": names})
    train(tmp_path / "run", "base", {"vae": train(tmp_path / "run", "vae")})
    return tmp_path / "run"


def of_weights(run: Path, card: MetricCard = CARD, stage: str = "base") -> MetricCard:
    """Return a card that names the weights of a stage."""
    return replace(card, generated={**card.generated, "artifacts": {stage: {"sha256": Manifest.open(run).sha256(stage)}}})


def scalars(run: Path, stage: str = "base") -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of the curves of a stage, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "training" / stage / "logs" / "metrics")).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def file_of(run: Path, name: str) -> Path:
    """Return the one file of results of a stage and name."""
    (file,) = (run / "metrics").glob(f"{name}_????????.json")
    return file


def evaluations(run: Path, stage: str = "base") -> list[dict[str, object]]:
    found: list[dict[str, object]] = read_card(run / stage)["metrics"].get("evaluations", [])
    return found


def test_record_results_writes_file_curves_and_card(run: Path) -> None:
    cards = [of_weights(run), of_weights(run, replace(CARD, metric="kvd", value=3.0))]
    table = record_results(run, "base", cards, "tats")
    assert read_cards(file_of(run, "base_tats")) == cards
    assert scalars(run) == {"metrics/fvd": [(7, 46.5)], "metrics/kvd": [(7, 3.0)]}
    assert read_card(run / "base")["metrics"]["values"] == {"val/psnr": 30.0}
    assert evaluations(run)[0] == {
        "metric": "fvd",
        "value": 46.5,
        "preset": "tats",
        "error": 1.5,
        "extractor": "i3d",
        "extractor_sha256": "ab" * 32,
        "steps": {"base": 50},
        "file": f"metrics/{file_of(run, 'base_tats').name}",
    }
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    assert "46.5" in captured.get() and "± 1.5 (disjoint folds)" in captured.get() and f"i3d {'ab' * 6}" in captured.get()


def test_record_results_leaves_the_run_valid(run: Path) -> None:
    before = [(row.stage, row.state, row.sha256, row.parents) for row in status_rows(run)]
    for stage in ("vae", "base"):
        record_results(run, stage, [of_weights(run, stage=stage)], "tats")
        assert evaluations(run, stage)
        assert verify_run(run) == []
    assert [(row.stage, row.state, row.sha256, row.parents) for row in status_rows(run)] == before
    manifest = Manifest.open(run)
    assert set(manifest.usable(["vae", "base"])) == {"vae", "base"}
    assert manifest.check_parents("sr1") == {stage: manifest.sha256(stage) for stage in ("vae", "base")}
    train(run, "base", {"vae": str(manifest.sha256("vae"))}, 2.0)  # the evaluated artifact can be replaced
    assert verify_run(run) == [] and evaluations(run) == []


def test_record_results_leaves_another_run_of_the_artifact_valid(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, late = Manifest.open(tmp_path / "other"), Manifest.open(tmp_path / "late")
    other.adopt("vae", run / "vae")
    record_results(run, "vae", [of_weights(run, stage="vae")], "a")
    late.adopt("vae", run / "vae")  # of a card that has figures already
    record_results(run, "vae", [of_weights(run, replace(CARD, metric="psnr"), "vae")], "b")
    for manifest in (other, late):
        assert verify_run(manifest.run_dir) == [] and manifest.usable(["vae"])
    before = (run / "vae" / "card.json").read_bytes()
    capsys.readouterr()
    record_results(other.run_dir, "vae", [CARD], "c")
    assert "is an artifact of another place: its card is left as it is" in capsys.readouterr().err
    assert (run / "vae" / "card.json").read_bytes() == before
    assert file_of(other.run_dir, "vae_c").is_file() and scalars(other.run_dir, "vae") == {"metrics/fvd": [(7, 46.5)]}


def test_manifest_finds_a_change_of_an_evaluated_card(run: Path) -> None:
    record_results(run, "base", [of_weights(run)], "a")
    path = run / "base" / "card.json"
    path.write_text(path.read_text().replace("46.5", "16.5"))
    assert len(verify_run(run)) == 1  # its checksum
    card = {**json.loads(path.read_text().replace("16.5", "46.5")), "steps": 8}
    del card["checksum"]
    path.write_text(card_text(card))
    assert len(verify_run(run)) == 1  # right checksum, another entry


def test_record_results_keeps_figures_of_other_guidance_and_other_metrics(run: Path) -> None:
    """A sweep keeps each of its points, and a second metric of the same samples takes nothing from the first."""
    first, kvd = of_weights(run), of_weights(run, replace(CARD, metric="kvd", value=3.0))
    stronger = replace(first, value=44.0, generated={**first.generated, "guidance": {"base": {"scale": 2.0}}})
    for card in (first, stronger, kvd, replace(first, value=46.0)):
        record_results(run, "base", [card], "tats")
    files = {path: read_cards(path) for path in (run / "metrics").iterdir()}
    assert sorted([(one.metric, one.value) for one in cards] for cards in files.values()) == [
        [("fvd", 44.0)],
        [("kvd", 3.0), ("fvd", 46.0)],
    ]
    assert [(one["metric"], one["value"], one.get("guidance")) for one in evaluations(run)] == [
        ("fvd", 44.0, {"base": {"scale": 2.0}}),
        ("kvd", 3.0, first.generated.get("guidance")),
        ("fvd", 46.0, first.generated.get("guidance")),
    ]


def test_record_results_replaces_a_figure_of_equal_metric_preset_and_extractor(run: Path) -> None:
    other = replace(CARD, value=2.0, extractor={"kind": "videomae", "sha256": "00" * 32})
    record_results(run, "base", [of_weights(run), of_weights(run, other)], "a")
    record_results(run, "base", [of_weights(run, replace(CARD, value=40.0))], "a")
    record_results(run, "base", [of_weights(run, replace(CARD, value=50.0, preset=None))], "own")
    assert [(one["value"], one["preset"]) for one in evaluations(run)] == [(2.0, "tats"), (40.0, "tats"), (50.0, None)]
    assert set(scalars(run)) == {"metrics/fvd", "metrics/fvd_i3d", "metrics/fvd_videomae"}


def test_add_evaluations_keeps_a_card_small_and_refuses_other_weights(run: Path) -> None:
    sha256 = str(Manifest.open(run).sha256("base"))
    add_evaluations(run / "base", sha256, [{"metric": "fvd", "preset": str(number)} for number in range(KEPT + 5)])
    assert [one["preset"] for one in evaluations(run)] == [str(number) for number in range(5, KEPT + 5)]
    with pytest.raises(ArtifactError, match="was trained again since"):
        add_evaluations(run / "base", "0" * 64, [{"metric": "fvd"}])
    with pytest.raises(ValueError, match="control characters"):
        add_evaluations(run / "base", sha256, [{"metric": "\x1b"}])
    assert verify_run(run) == []


def test_record_results_of_other_weights_writes_the_file_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [of_weights(run)]
    train(run, "base", {"vae": str(Manifest.open(run).sha256("vae"))}, 2.0)
    record_results(run, "base", cards, "a")
    assert "was trained again meanwhile" in capsys.readouterr().err
    assert read_cards(file_of(run, "base_a")) == cards
    assert evaluations(run) == [] and not (run / "training" / "base" / "logs").exists()


def test_record_prediction_writes_curves_and_card_of_each_stage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(stage: str, given: int, prediction: str, psnr: float) -> PredictionFigures:
        task = f"from {given} frames"
        return PredictionFigures(stage, (8, 8), given, task, prediction, 3, VideoMean(psnr, 2, 0.123456, 9), VideoMean(0.5, 1, None, None))

    figures = [of("base", 5, MODEL, 20.0), of("base", 5, REPEATED, 21.0), of("base", 1, MODEL, 18.0)]
    undefined = PredictionFigures("base", (8, 8), 1, "from 1 frames", LINEAR)
    sha256, windows = Manifest.open(run).sha256("base"), {"split": "val", "index_sha256": "a" * 64}
    facts: dict[str, Any] = {"artifacts": {"base": {"sha256": sha256}}, "steps": {"base": 4}, "guidance": {}, "seed": 3, "windows": windows}
    record_prediction(run, [*figures, undefined], facts)
    assert scalars(run) == {
        **{"metrics/psnr_given_5_val": [(7, 20.0)], "metrics/ssim_given_5_val": [(7, 0.5)]},
        **{"metrics/psnr_given_1_val": [(7, 18.0)], "metrics/ssim_given_1_val": [(7, 0.5)]},
    }
    assert [(entry["metric"], entry["task"], entry["prediction"], entry["value"]) for entry in evaluations(run)] == [
        *(
            (name, f"from {given} frames", prediction, value)
            for given, prediction, psnr in ((5, MODEL, 20.0), (5, REPEATED, 21.0), (1, MODEL, 18.0))
            for name, value in (("psnr", psnr), ("ssim", 0.5))
        ),
    ]
    made = {**windows, "steps": {"base": 4}, "guidance": {}, "seed": 3, "windows": 3, "file": "prediction.json"}
    first, second = evaluations(run)[:2]
    assert first == {
        **made,
        "metric": "psnr",
        "task": "from 5 frames",
        "prediction": "model",
        "value": 20.0,
        "videos": 2,
        "interval": [0.1235, 9],
    }
    assert "interval" not in second, "one video has none"
    assert r"videos 2, windows 3, interval \[0.1235, 9\]" in (run / "base" / "README.md").read_text()
    record_prediction(run, figures, facts)
    assert len(evaluations(run)) == 6, "a figure that is measured again takes the place of the old one"
    record_prediction(run, [of("base", 5, MODEL, 40.0)], {**facts, "windows": {**windows, "split": "train"}})
    assert (len(evaluations(run)), evaluations(run)[0]["value"]) == (8, 20.0), "figures of another split stand beside these"
    assert "split train, index_sha256 aaaa" in (run / "base" / "README.md").read_text()
    facts["artifacts"] = {"base": {"sha256": "0" * 64}}
    record_prediction(run, [of("base", 5, MODEL, 1.0)], facts)
    assert "was trained again meanwhile" in capsys.readouterr().err
    assert evaluations(run)[0]["value"] == 20.0 and 1.0 not in [value for _, value in scalars(run)["metrics/psnr_given_5_val"]]


def test_record_results_goes_on_without_tensorboard_and_card(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "read-only", "card.json")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr("walt_pl.runs.evaluations.write_whole", read_only)
    record_results(run, "base", [of_weights(run)], "a")
    lines = capsys.readouterr().err.strip().split("\n")
    assert [line.split(" (")[0] for line in lines] == [
        "no curves of the metrics: tensorboard is not installed",
        f"the card of {run / 'base'} gets no figures",
    ]
    assert read_cards(file_of(run, "base_a")) and verify_run(run) == []


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a\n", "a" * 200])
def test_record_results_refuses_a_name_that_leaves_its_folder(run: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"the name .* of an evaluation"):
        record_results(run, "base", [CARD], name)
    with pytest.raises(ValueError, match='no finished stage "sr1"'):
        record_results(run, "sr1", [CARD], "a")


def test_clean_removes_results(run: Path) -> None:
    record_results(run, "base", [of_weights(run)], "a.b-c")
    main(["clean", "--run", str(run)])
    assert not run.exists()


def test_manifest_start_goes_on_after_an_evaluation_that_was_killed(run: Path) -> None:
    left = run / "base" / f".card.json.1.{files._host()}{'0' * 8}.tmp"  # as `whole_file` names it
    left.write_bytes(b"part")
    os.utime(left, (time.time() - 60, time.time() - 60))
    Manifest.open(run).start("base", {"vae": str(Manifest.open(run).sha256("vae"))})
    assert not left.exists()
