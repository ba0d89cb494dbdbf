"""Scores of a run, with an oracle in the place of its models."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from walt_pl.data.batch import DataError
from walt_pl.data.index import Index, IndexEntry
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.sampling.cascade import SampleRequest, SamplingConfig
from walt_pl.shapes.evaluation import evaluate_autoencoder, read_clips, score_continuation


@pytest.fixture(scope="module")
def entries(painted: Path) -> list[IndexEntry]:
    return list(Index(painted, "val").videos)


@pytest.mark.parametrize("right", [True, False])
def test_score_continuation_reads_motion_from_frames_that_were_not_given(entries: list[IndexEntry], right: bool) -> None:
    """An oracle that knows its clip by its beginning; the wrong one lets the rest run backwards."""
    clips = read_clips(entries, 32)
    asked: list[SampleRequest] = []

    def sample_stage(stage: str, request: SampleRequest, sampling: SamplingConfig) -> Tensor:
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
        base="base", pixels=lambda stage: (32, 32), overlap=5, encode=lambda clip: clip, decode=lambda clip: clip, sample_stage=sample_stage
    )
    shares = score_continuation(cascade, entries, SamplingConfig(), seed=0, batch=4)
    alike = sum(entry.caption.split()[-1] == entries[0].caption.split()[-1] for entry in entries) / len(entries)
    assert shares == {"motion_continued": float(right), "motion_without_past": pytest.approx(alike)}
    assert all(not any(request.prompts) for request in asked), "the caption is not told"
    assert [request.seeds for request in asked[:2]] == [request.seeds for request in asked[2:]], "from the same noise"


def test_evaluate_autoencoder_scores_psnr_of_reconstructions(
    entries: list[IndexEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is 0.1 off everywhere (of 2 from peak to peak) in one clip, 0.2 in the other; then perfect for the analytic scorer."""
    errors = iter([0.1, 0.2, 0.0, 0.0])
    oracle = SimpleNamespace(encode=lambda clip: clip, decode=lambda clip: clip + next(errors))
    monkeypatch.setattr("walt_pl.shapes.evaluation.Cascade", lambda folders, device: oracle)
    source = PixelDataset(entries, (), ClipTransform(32))
    summary, clips, lines = evaluate_autoencoder(tmp_path, source, [1, 3])
    scores = summary["scores"]["vae"]
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
        evaluate_autoencoder(tmp_path, missing, [0])


def test_evaluate_autoencoder_of_other_clips_has_no_scores_of_shapes(
    entries: list[IndexEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blurred reconstructions lose high-frequency energy."""

    def blur(clip: Tensor) -> Tensor:
        return (clip + clip.roll(1, dims=-1)) / 2

    monkeypatch.setattr("walt_pl.shapes.evaluation.Cascade", lambda folders, device: SimpleNamespace(encode=lambda clip: clip, decode=blur))
    others = [replace(entry, caption="a dog") for entry in entries]
    scores = evaluate_autoencoder(tmp_path, PixelDataset(others, (), ClipTransform(32)), [0, 1])[0]["scores"]["vae"]
    assert set(scores) == {"psnr", "psnr_lowest", "psnr_highest", "high_frequency"}
    assert 0.1 < scores["high_frequency"] < 0.9
