"""Every task's stage trains through the real command line, and its measure reads the run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.cli.test_program import EXPERIMENT, SMALL_DENOISER, TINY, TWO_STEPS
from tests.helpers.environment import Walt
from walt_pl.paper.measured import Measure
from walt_pl.paper.measures import class_video, guidance
from walt_pl.paper.measures.aspect import measure_aspect_finetuned, measure_aspect_scratch
from walt_pl.paper.measures.class_images import measure_class_images
from walt_pl.paper.measures.class_video import measure_class_video
from walt_pl.paper.measures.frame_prediction import measure_frame_prediction
from walt_pl.paper.measures.guidance import measure_guidance
from walt_pl.paper.measures.image_to_video import measure_image_to_video
from walt_pl.paper.measures.long_video import measure_long_video
from walt_pl.paper.measures.super_resolution import measure_super_resolution
from walt_pl.runs.artifact import load
from walt_pl.shapes.dataset import write_set

MEASURES: dict[str, Measure] = {
    "base_class_video": measure_class_video,
    "base_class_images": measure_class_images,
    "base_frame_prediction": measure_frame_prediction,
    "base_image_to_video": measure_image_to_video,
    "base_long_video": measure_long_video,
    "base_9x16": measure_aspect_finetuned,
    "base_9x16_scratch": measure_aspect_scratch,
}


def fit(walt: Walt, stage: str, run: Path, index: Path, *more: str) -> None:
    config = ["--config", str(EXPERIMENT / f"{stage}.yaml"), "--run", str(run), "--data.index", str(index)]
    tiny = TINY["vae"] if stage == "vae" else SMALL_DENOISER
    videos = [] if stage in ("vae", "base_class_images") else ["--data.videos_per_batch", "2"]
    images = ["--data.image_stacks_per_batch", "0"] if stage in ("base_class_video", "base_frame_prediction") else []
    walt("fit", *config, *tiny, *videos, *TWO_STEPS, *images, *more)


@pytest.fixture(scope="module")
def run(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and the square base, two steps each."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    for stage in ("vae", "base"):
        fit(walt, stage, run, painted)
    return run


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of a small set of 128 x 224 pixels."""
    return write_set(tmp_path_factory.mktemp("wide"), videos=4, images=4, validation=4, seed=3, aspect=1.75)


@pytest.mark.parametrize("stage", MEASURES)
def test_task_stage_trains_and_its_measure_reads_the_run(
    stage: str, walt: Walt, run: Path, painted: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_video, "SHORT", 14)
    index = wide if stage.startswith("base_9x16") else painted
    fit(walt, stage, run, index, *(["--init", str(run / "base")] if stage == "base_9x16" else []))
    found = MEASURES[stage](run, index, 0, True)
    assert all(math.isfinite(figure.value) for figure in found.figures.values())
    assert found.clips is not None
    frames = {"base_class_images": 1, "base_long_video": 53}.get(stage, 17)
    assert found.clips.shape[2:] == (frames, 32, 56 if stage.startswith("base_9x16") else 32)


def test_base_is_measured_at_several_guidance_scales(run: Path, painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "SCALES", (1.0, 3.0))
    found = measure_guidance(run, painted, 0, True)
    assert found.clips is not None and len(found.clips) == 2
    assert not found.clips[0].equal(found.clips[1]), "guidance changes a sample"
    assert {"all_1", "spread_3"} <= set(found.figures)


def test_super_resolution_is_measured_without_noise_augmentation(walt: Walt, run: Path, painted: Path) -> None:
    fit(walt, "sr1", run, painted, "--config", str(EXPERIMENT / "no_noise_augmentation.yaml"))
    kept = load(run / "sr1").config["diffusion"]
    assert (kept["noise_aug_max"], kept["noise_aug_level"]) == (1, 0)
    found = measure_super_resolution(run, painted, 0, True)
    assert found.clips is not None and found.clips.shape[-2:] == (64, 64)
    assert {"texture", "iou", "iou_base"} <= set(found.figures)
