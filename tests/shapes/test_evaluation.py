"""Scores of a run, with an oracle in the place of its models."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_stages import write_stages
from walt_pl.data.batch import DataError
from walt_pl.data.index import Index, IndexEntry
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.shapes.evaluation import evaluate_autoencoder, evaluate_run, read_clips, render_summary, score_continuation, score_outlines
from walt_pl.shapes.outline import measure_outlines


@pytest.fixture(scope="module")
def entries(painted: Path) -> list[IndexEntry]:
    return list(Index(painted, "val").videos)


@pytest.mark.parametrize("right", [True, False])
def test_score_continuation_reads_motion_from_frames_that_were_not_given(
    entries: list[IndexEntry], right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle that knows its clip by its beginning; the wrong one lets the rest run backwards."""
    monkeypatch.setattr("walt_pl.shapes.evaluation.BATCH", 4)
    clips = read_clips(entries, 32)
    asked: list[SampleRequest] = []

    def sample_stage(stage: str, request: SampleRequest, sampling: SamplingConfig, low_res: None, number: int) -> Tensor:
        asked.append(request)
        if not request.context_latents:
            return clips[[0] * len(request)]
        places = [
            int((clips[:, :, :5] - context_latents).abs().sum(dim=(1, 2, 3, 4)).argmin())
            for context_latents in request.context_latents["base"]
        ]
        rest = clips[places, :, 5:]
        return torch.cat([request.context_latents["base"], rest if right else rest.flip(2)], dim=2)

    cascade: Any = SimpleNamespace(
        base="base",
        stages=["base"],
        pixels=lambda stage: (32, 32),
        overlap=5,
        encode=lambda clip: clip,
        decode=lambda clip: clip,
        sample_stage=sample_stage,
    )
    shares = score_continuation(cascade, entries, SamplingConfig(), seed=0)
    alike = sum(entry.caption.split()[-1] == entries[0].caption.split()[-1] for entry in entries) / len(entries)
    assert shares == {"motion_continued": float(right), "motion_without_context": pytest.approx(alike)}
    assert all(not any(request.prompts) for request in asked), "the caption is not told"
    assert [request.seeds for request in asked[:2]] == [request.seeds for request in asked[2:]], "from the same noise"


def test_evaluate_autoencoder_scores_psnr_of_reconstructions(entries: list[IndexEntry], tmp_path: Path) -> None:
    """One that is 0.1 off everywhere (of 2 from peak to peak) in one clip, 0.2 in the other; then perfect for the analytic scorer."""
    errors = iter([0.1, 0.2, 0.0, 0.0])
    oracle: Any = SimpleNamespace(encode=lambda clip: clip, decode=lambda clip: clip + next(errors))
    source = PixelDataset(entries, (), ClipTransform(32))
    summary, clips, lines = evaluate_autoencoder(oracle, "vae_gan", source, [1, 3])
    scores = summary["scores"]["vae_gan"]
    assert {name: value for name, value in scores.items() if not name.startswith("shapes_")} == {
        "psnr": pytest.approx(23.01, abs=0.01),
        "psnr_lowest": pytest.approx(20.0),
        "psnr_highest": pytest.approx(26.02, abs=0.01),
        "high_frequency": pytest.approx(1.0, abs=1e-4),
    }
    assert [scores[f"shapes_{word}"] for word in ("colour", "motion", "shape", "texture")] == [1.0] * 4
    assert torch.equal(clips[::2], read_clips([entries[1], entries[3]], 32)), "each original before its reconstruction"
    assert lines[0] == f"{entries[1].path.name}: {entries[1].caption}" and lines[1::2] == [
        "reconstruction, 26.0 dB",
        "reconstruction, 20.0 dB",
    ]
    missing = PixelDataset([replace(entries[0], path=tmp_path / "gone.mp4")], (), ClipTransform(32))
    with pytest.raises(DataError, match=r"gone\.mp4: no such file"):
        evaluate_autoencoder(oracle, "vae", missing, [0])


def test_evaluate_autoencoder_of_other_clips_has_no_scores_of_shapes(entries: list[IndexEntry]) -> None:
    """Blurred reconstructions lose high-frequency energy."""

    def blur(clip: Tensor) -> Tensor:
        return (clip + clip.roll(1, dims=-1)) / 2

    cascade: Any = SimpleNamespace(encode=lambda clip: clip, decode=blur)
    others = [replace(entry, caption="a dog") for entry in entries]
    scores = evaluate_autoencoder(cascade, "vae", PixelDataset(others, (), ClipTransform(32)), [0, 1])[0]["scores"]["vae"]
    assert set(scores) == {"psnr", "psnr_lowest", "psnr_highest", "high_frequency"}
    assert 0.1 < scores["high_frequency"] < 0.9


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A chain of three super-resolution stages, 16 to 128 px, with random weights."""
    return write_stages(tmp_path_factory.mktemp("larger"), upscalers=3, frames=5)


def test_evaluate_run_scores_every_stage_there_is_at_its_own_size(
    larger: dict[str, Path], painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cascade, "open", lambda *_, **__: Cascade(larger, dtype=torch.float32))
    for count in ("RECONSTRUCTED", "UPSCALED"):
        monkeypatch.setattr(f"walt_pl.shapes.evaluation.{count}", 2)
    summary = evaluate_run(Path("runs/larger"), painted, prompts=2, unseen=1, seed=0, steps=1)
    scores = summary["scores"]
    assert list(scores) == ["vae", "base", "sr1", "sr2", "sr3"]
    assert {name for name in scores["vae"] if "psnr" in name} == {f"psnr_{size}" for size in (16, 32, 64, 128)}
    assert set(scores["base"]) == {"colour", "motion", "shape", "all", "pair", "unseen_pairs", "iou", "steadiness"}
    for stage in ("sr1", "sr2", "sr3"):
        assert set(scores[stage]) == {"texture", "texture_bicubic", "psnr", "psnr_bicubic", "iou", "steadiness"}
    assert summary["counts"] == {"vae": 2, "base": 2, "unseen_pairs": 1, "sr1": 2, "sr2": 2, "sr3": 2, "outlines": 2}
    assert summary["steps"] == dict.fromkeys(("base", "sr1", "sr2", "sr3"), 1)
    assert render_summary(summary).row_count == sum(map(len, scores.values()))


def test_evaluate_run_of_a_model_of_classes_says_that_the_scorer_reads_captions(
    tmp_path: Path, painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: folder for name, folder in write_stages(tmp_path, classes=5).items() if name != "sr1"}
    renamed = {"base_xl" if name == "base" else name: folder for name, folder in folders.items()}
    monkeypatch.setattr(Cascade, "open", lambda *_, **__: Cascade(renamed, dtype=torch.float32))
    with pytest.raises(ValueError, match=r'stage "base_xl" of runs/ucf101 was trained without captions; .*--stages vae'):
        evaluate_run(Path("runs/ucf101"), painted, prompts=2, unseen=1, seed=0)


def test_render_summary_prints_psnr_in_decibels_and_shares_in_percent() -> None:
    figures = {"psnr": 30.0, "shapes_psnr_32": 20.5, "shapes_colour": 0.5, "iou_32": 0.9512, "steadiness": 0.456}
    assert list(render_summary({"scores": {"vae": figures}}).columns[2].cells) == ["30.00 dB", "20.50 dB", "50.0%", "0.951", "0.46 px"]


def test_score_outlines_are_those_of_the_samples_of_each_stage_above_the_other(entries: list[IndexEntry]) -> None:
    """An oracle whose sr1 knows the clip by the base's samples, and whose latents are pixels."""
    small, large = read_clips(entries, 32), read_clips(entries, 64)
    asked: list[tuple[str, list[int]]] = []

    def sample_stage(stage: str, request: SampleRequest, sampling: SamplingConfig, low_res: Tensor, number: int) -> Tensor:
        asked.append((stage, list(request.seeds)))
        places = [int((small - clip).abs().sum(dim=(1, 2, 3, 4)).argmin()) for clip in low_res]
        return large[places]

    cascade: Any = SimpleNamespace(base="base", stages=["base", "sr1"], decode=lambda clip: clip, sample_stage=sample_stage)
    order = list(reversed(range(len(entries))))
    found = score_outlines(cascade, [entries[i].caption for i in order], small[order], SamplingConfig(), seed=5)
    for stage, clips in (("base", small), ("sr1", large)):
        for figure, value in measure_outlines(clips[order]).items():
            assert torch.equal(found[stage][figure].clips, value.clips), (stage, figure)
    assert [seed for stage, seeds in asked for seed in seeds if stage == "sr1"] == [5 + i for i in range(len(entries))]
