"""`walt evaluate RUN` for every kind of run, with tiny models of random weights."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.helpers import tiny_stages
from walt_pl.cli.evaluate_options import EvaluateOptions, sample_protocol, trained_stride
from walt_pl.cli.evaluate_prediction import describe_videos, summarise
from walt_pl.cli.evaluate_run import _reconstructed_stride
from walt_pl.cli.main import main
from walt_pl.data.index import Index
from walt_pl.data.transforms import ClipTransform
from walt_pl.evaluation.given_frames import context_frames
from walt_pl.evaluation.prediction import MODEL, REPEATED, MeasuredPrediction
from walt_pl.evaluation.reconstruction_source import ReconstructionSource
from walt_pl.evaluation.run_source import RunSource
from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips
from walt_pl.files import file_sha256
from walt_pl.media.reading import read_image
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.card import read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.sampling.cascade import Cascade


@pytest.fixture(scope="module")
def runs(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of each kind: vae, text, classes, images, continuing, predicting; trained on the painted set, as their cards say."""
    root = tmp_path_factory.mktemp("runs")

    def save(folder: Path, **arguments: Any) -> str:
        arguments["train_config"] = f"data:\n  index: {painted}\n  size: 32\n  frames: 9\n"
        arguments["card"] = {**arguments["card"], "index": {"sha256": file_sha256(painted)}}
        return save_artifact(folder, **arguments)

    kinds: dict[str, dict[str, Any]] = {
        "vae": {"upscalers": 0},
        "text": {"upscalers": 1, "frames": 5},
        "classes": {"classes": 18, "upscalers": 0},
        "images": {"classes": 3, "upscalers": 0, "frames": 1},
        "continuing": {"frame_prediction": 1.0, "upscalers": 0},
        "predicting": {"frame_prediction": 1.0, "upscalers": 0, "classes": 18},
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_stages, "save_artifact", save)
        for name, settings in kinds.items():
            manifest = Manifest.open(root / name)
            for stage, folder in tiny_stages.write_stages(root / name, **settings).items():
                if name != "vae" or stage == "vae":
                    manifest.finish(stage, folder)
    return root


def cards_of(run: Path, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the cards of the one file of a pattern by metric."""
    (file,) = (run / "metrics").glob(pattern)
    plain = json.loads(file.read_text())
    return {card["metric"]: card for card in (plain if isinstance(plain, list) else [plain])}


def cascade_of(run: Path) -> Cascade:
    return Cascade.open(run, dtype=torch.float32)


def test_evaluate_of_an_autoencoder_compares_reconstructions_with_originals(
    runs: Path, painted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "vae"
    main(["evaluate", str(run), "--dtype", "float32"])
    said = capsys.readouterr().out
    assert "psnr_lowest" in said and "6 held-out clips" in said and (run / "reconstructions.png").is_file()
    assert "fvd, kvd with i3d=i3d_torchscript.pt" in said, "a further metric, and its file"
    measured = cards_of(run, "vae_own_*.json")
    assert set(measured) == {"psnr", "ssim"}
    card = measured["psnr"]
    assert card["generated"]["kind"] == "reconstructions" and card["generated"]["clips"] == card["real"]["clips"] == 6
    assert card["generated"]["artifacts"]["vae"]["sha256"] == Manifest.open(run).sha256("vae")
    assert (card["protocol"]["size"], card["protocol"]["frames"], card["protocol"]["start"]) == ([32, 32], 9, "first")
    assert card["real"]["index_sha256"] == file_sha256(painted) and card["preset"] is None
    table = cards_of(run, "vae_shapes_*.json")
    assert {card["better"] for name, card in table.items() if "steadiness" in name} == {"min"}
    assert "shapes_colour" in table and "psnr" not in table and not any("high_frequency" in name for name in table)
    error = table["shapes_psnr_32"]["error"]
    assert error["kind"] == "disjoint folds" and len(error["values"]) == 3 and 0 < error["std"] < 1
    assert np.mean(error["values"]) == pytest.approx(table["shapes_psnr_32"]["value"], abs=1e-4), "equal parts"


def test_evaluate_of_the_embedded_set_prints_its_table_and_records_every_figure(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in ("RECONSTRUCTED", "UPSCALED"):
        monkeypatch.setattr(f"walt_pl.shapes.evaluation.{count}", 2)
    run = runs / "text"
    main(["evaluate", str(run), "--prompts", "20", "--unseen", "1", "--steps", "1", "--guidance", "2", "--dtype", "float32"])
    assert "unseen_pairs" in capsys.readouterr().out
    base, upscaled = cards_of(run, "base_shapes_*.json"), cards_of(run, "sr1_shapes_*.json")
    assert set(base) == {f"shapes_{name}" for name in ("colour", "motion", "shape", "all", "pair", "unseen_pairs", "iou", "steadiness")}
    assert {"shapes_texture", "shapes_psnr"} <= set(upscaled)
    assert base["shapes_steadiness"]["better"] == "min" and base["shapes_iou"]["better"] == "max"
    generated = base["shapes_all"]["generated"]
    assert generated["clips"] == 6, "there are no more"
    assert base["shapes_unseen_pairs"]["generated"]["clips"] == 1
    assert generated["steps"] == {"base": 1, "sr1": 1} and generated["guidance"]["base"]["scale"] == 2


def test_evaluate_takes_the_analytic_scorer_as_one_metric_of_samples(runs: Path) -> None:
    """The samples of the last stage, under the captions of the held-out clips."""
    run = runs / "text"
    main(["evaluate", str(run), "--metric", "shapes", "--clips", "3", "--steps", "1", "--batch", "2", "--dtype", "float32"])
    card = cards_of(run, "sr1_own_*.json")["shapes"]
    assert 0 <= card["value"] <= 1 and card["generated"]["clips"] == 3 and card["generated"]["kind"] == "run"
    assert card["generated"]["conditions"]["of"]["split"] == "val" and card["extractor"]["kind"] == "shapes"


def test_evaluate_of_frame_prediction_compares_continued_clips_with_their_originals(runs: Path) -> None:
    run = runs / "continuing"
    main(["evaluate", str(run), "--metric", "psnr", "--clips", "3", "--steps", "1", "--dtype", "float32"])
    card = cards_of(run, "base_own_*.json")["psnr"]
    assert card["protocol"]["context_frames"] == card["generated"]["conditions"]["context_frames"] == 5
    assert card["generated"]["clips"] == card["real"]["clips"] == 3 and card["protocol"]["frames"] == 9


def test_evaluate_of_frame_prediction_has_one_table_a_picture_and_a_file_of_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "predicting"
    main(["evaluate", str(run), "--clips", "2", "--steps", "1", "--dtype", "float32"])
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["frame prediction from 5 frames"] * 4 + ["image to video from 1 frame"] * 4
    assert [row[2] for row in rows[:4]] == ["model", "repeated frame", "linear extrapolation", "autoencoder of the true frames"]
    assert [row[3] for row in rows if row[2] == "linear extrapolation"][1] == "not defined: it needs two given frames"
    assert rows[0][1] == "16 x 16" and rows[0][6:] == ["2", "16"] and '16 windows of 2 videos of split "val"' in said
    plain = json.loads((run / "prediction.json").read_text())
    assert [f"{plain['figures'][0]['psnr'][name]:.2f}" for name in ("value", "low", "high")] == re.findall(r"-?[\d.]+", rows[0][3])
    assert len(plain["figures"]) == 8 and plain["steps"] == {"base": 1} and plain["windows"]["split"] == "val"
    assert plain["artifacts"]["base"]["sha256"] == Manifest.open(run).sha256("base")
    metrics = read_card(run / "base")["metrics"]["evaluations"]
    told = {(entry["metric"], entry["task"], entry["prediction"]): entry for entry in metrics if entry["file"] == "prediction.json"}
    assert len(told) == 14, "PSNR and SSIM of each row but that without figures"
    entry = told["psnr", "frame prediction from 5 frames", "model"]
    assert entry["value"] == plain["figures"][0]["psnr"]["value"] and (entry["videos"], entry["windows"]) == (2, 16)
    assert "| `psnr` " in (card := (run / "base" / "README.md").read_text()) and "prediction repeated frame" in card
    assert "psnr_gain" not in plain["figures"][1], "the repeated frame has no difference from itself"
    assert read_image(run / "prediction.png").shape[2] == 3 * 7 * 16, "three clips abreast, seven frames each"


def test_describe_videos_takes_a_video_as_one_case() -> None:
    values = {ClipDraw(0, 0): 1.0, ClipDraw(0, 4): 3.0, ClipDraw(5, 0): 4.0, ClipDraw(7, 2): 6.0}
    found = describe_videos(values)
    half = stats.t.ppf(0.975, 2) * np.std([2.0, 4.0, 6.0], ddof=1) / np.sqrt(3)
    assert (found["value"], found["cases"]) == (4.0, 3)
    assert (found["low"], found["high"]) == (pytest.approx(4 - half), pytest.approx(4 + half))
    assert describe_videos({ClipDraw(0, 0): 1.0, ClipDraw(0, 4): 3.0}) == {"value": 2.0, "cases": 1, "low": None, "high": None}


def test_summarise_subtracts_the_repeated_frame_of_the_same_window() -> None:
    windows = [ClipDraw(0, 0), ClipDraw(1, 0), ClipDraw(1, 3)]

    def measured(name: str, given: int, psnr: list[float]) -> MeasuredPrediction:
        return MeasuredPrediction("base", (16, 16), given, name, {"psnr": torch.tensor(psnr)}, windows[-len(psnr) :])

    model = measured(MODEL, 5, [20.0, 30.0])
    found = summarise(model, [model, measured(REPEATED, 5, [1.0, 18.0, 26.0]), measured(REPEATED, 1, [0.0, 0.0, 0.0])])
    assert (found["psnr_gain"]["value"], found["psnr_gain"]["cases"], found["windows"]) == (3.0, 1, 2)
    assert found["task"] == "frame prediction from 5 frames"


@pytest.mark.parametrize(("kind", "source"), [("continuing", RunSource), ("vae", ReconstructionSource)])
def test_evaluate_strides_over_real_clips_alone(runs: Path, kind: str, source: type[ClipSource], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample has 9 frames, of which every second one would be too few."""
    strides: list[int] = []
    original = source.read_blocks

    def read_blocks(self: ClipSource, blocks: Any, frames: int, stride: int, size: Any) -> Iterator[ReadClips]:
        strides.append(stride)
        return original(self, blocks, frames, stride, size)

    monkeypatch.setattr(source, "read_blocks", read_blocks)
    before = set((runs / kind / "metrics").glob("*_own_*.json"))
    options = ["--metric", "psnr", "--clips", "2", "--frames", "6", "--stride", "2", "--dtype", "float32"]
    main(["evaluate", str(runs / kind), *options, *(["--steps", "1"] if kind == "continuing" else [])])
    (written,) = set((runs / kind / "metrics").glob("*_own_*.json")) - before
    card = json.loads(written.read_text())
    written.unlink()
    generated = card["generated"]
    assert strides == [1] and card["protocol"]["stride"] == generated.get("conditions", generated)["stride"] == 2


def test_evaluate_writes_the_images_of_a_class_model_for_another_evaluator(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs / "images", tmp_path / "images.npz"
    command = ["evaluate", str(run), "--npz", str(out), "--clips", "4", "--steps", "1", "--batch", "3", "--dtype", "float32"]
    main([*command, "--split", "train"])
    said = capsys.readouterr().out
    assert "no metric was chosen; there are:" in said and "fid" in said and f"4 images: {out}" in said
    with np.load(out) as found:
        assert found["arr_0"].shape == (4, 16, 16, 3) and found["arr_0"].dtype == np.uint8 and found["arr_0"].std() > 1
        assert found["arr_1"].tolist() == [0, 1, 2, 0]
    assert not (run / "cache" / "samples").exists()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["classes", "--npz", "a.npz"], r"--npz holds images, and .*classes makes clips of 9 frames"),
        (["classes", "--frames", "16", "--clips", "2"], r"makes clips of 9 frames, and the protocol wants 16: type --frames 9"),
        (["continuing", "--metric", "psnr", "--preset", "tats"], "context frames in every step of its training.*--preset k600"),
        (["classes", "--preset", "k600"], "was trained without frame prediction, and the protocol gives 5 frames"),
        (["vae", "--npz", "a.npz"], "--npz is of samples, and .*vae has an autoencoder alone: leave it out"),
        (["text", "--clips", "2"], "not of the embedded set's table: add --metric shapes, or --extractor FILE"),
        (["classes", "--steps", "{sr7: 3}"], r"steps names \['sr7'\], but the stages that run are \['base'\]"),
        (["classes", "--metric", "fvd", "--clips", "2"], "i3d_torchscript.pt"),
    ],
)
def test_evaluate_refuses_what_does_not_fit_the_run(runs: Path, command: list[str], answer: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(runs / command[0]), *command[1:]])
    assert re.search(answer, str(ended.value.code)), ended.value.code


def test_protocol_changes_keep_a_preset_and_fill_the_rest_from_the_run() -> None:
    derived = {"frames": 9, "size": (32, 32)}
    run = Path("runs/tiny")
    assert EvaluateOptions(run).protocol_changes(derived) == derived
    typed = EvaluateOptions(run, clips=4, frames=5).protocol_changes(derived)
    assert typed == {"frames": 5, "size": (32, 32), "clips": 4, "real_clips": 4}
    assert EvaluateOptions(run, preset="tats").protocol_changes(derived) == {}
    assert EvaluateOptions(run, preset="tats", clips=4).protocol_changes(derived) == {"clips": 4, "real_clips": 4}
    assert EvaluateOptions(run, preset="adm_imagenet", clips=4).protocol_changes(derived) == {"clips": 4}


def test_sample_protocol_takes_frames_and_size_from_the_run(runs: Path) -> None:
    found = {name: sample_protocol(cascade_of(runs / name), 2) for name in ("text", "images", "continuing")}
    assert found["text"] == {"frames": 16, "stride": 2, "size": (32, 32), "context_frames": 0, "paired": False}
    assert (found["images"]["frames"], found["images"]["real_clips"]) == (1, None)
    assert (found["continuing"]["context_frames"], found["continuing"]["paired"]) == (5, True)
    assert context_frames(cascade_of(runs / "text")) == 0


def test_trained_stride_follows_the_rate_of_the_training(painted: Path) -> None:
    """The set has 8 frames a second."""
    videos = Index(painted, "val").videos
    assert trained_stride(videos, ClipTransform(32, stride=3)) == 3
    assert trained_stride(videos, ClipTransform(32, fps=4.0)) == 2
    with pytest.raises(ValueError, match=r"trained at 3 frames a second, and the frames of the files are 8 a second: .*--stride"):
        trained_stride(videos, ClipTransform(32, fps=3.0))


def test_evaluate_reconstructs_consecutive_frames_of_files_without_a_common_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> int:
        raise ValueError("the frames of the files are of different rates")

    monkeypatch.setattr("walt_pl.cli.evaluate_run.trained_stride", refuse)
    monkeypatch.setattr("walt_pl.cli.evaluate_run._videos", lambda _: [])
    assert _reconstructed_stride(SimpleNamespace(clip_transform=None)) == 1  # type: ignore[arg-type]
    assert "different frame rates" in capsys.readouterr().out
