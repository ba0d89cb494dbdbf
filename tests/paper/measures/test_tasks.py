"""Measures of the tasks on true clips in place of samples, and on clips with known faults."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.known_cascade import KnownCascade, painted_clips
from walt_pl.data.index import Index
from walt_pl.paper.measured import Measure, Measured
from walt_pl.paper.measures import guidance
from walt_pl.paper.measures.aspect import measure_aspect_finetuned, measure_aspect_scratch
from walt_pl.paper.measures.class_images import measure_class_images
from walt_pl.paper.measures.class_video import measure_class_video
from walt_pl.paper.measures.frame_prediction import measure_frame_prediction
from walt_pl.paper.measures.guidance import measure_guidance
from walt_pl.paper.measures.image_to_video import measure_image_to_video
from walt_pl.paper.measures.super_resolution import measure_super_resolution
from walt_pl.shapes.dataset import MOTIONS, PAIRS, SEEN_PAIRS, parse_caption
from walt_pl.shapes.evaluation import read_clips

RUN = Path("none")


@pytest.fixture(scope="module")
def captions(painted: Path) -> list[str]:
    return [entry.caption for entry in Index(painted, "val").videos]


@pytest.fixture(scope="module")
def true(painted: Path) -> Tensor:
    """Validation clips at 32 pixels."""
    return read_clips(Index(painted, "val").videos, 32)


def measured(measure: Measure, cascade: KnownCascade, index: Path, patch: pytest.MonkeyPatch) -> Measured:
    cascade.use(patch)
    found = measure(RUN, index, 0, True)
    assert found.clips is not None and len(found.clips) == len(found.captions)
    for figure in found.figures.values():
        assert figure.low <= figure.high and figure.cases > 1
    return found


def values(found: Measured) -> dict[str, float]:
    return {name: figure.value for name, figure in found.figures.items()}


def class_captions(motions: list[str]) -> list[str]:
    """48 captions: the pairs of videos in turn, and these motions in turn."""
    words = [(*SEEN_PAIRS[number % 14], motions[number % len(motions)]) for number in range(48)]
    return [f"a plain {colour} {shape} {'moving ' if motion in MOTIONS[:4] else ''}{motion}" for shape, colour, motion in words]


def test_measure_class_video_on_true_clips_is_right_and_even(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = KnownCascade({"base_class_video": painted_clips(class_captions(list(MOTIONS)))})
    found = measured(measure_class_video, cascade, painted, monkeypatch)
    figures = values(found)
    assert figures["shape"] == figures["colour"] == figures["pair"] == 1 and figures["iou"] > 0.98
    assert figures["motion_distance"] == 0 and found.figures["motion_distance"].cases == 48
    labels = [label for request in cascade.requests for label in request.labels]
    assert [PAIRS[label] for label in labels] == [SEEN_PAIRS[number % 14] for number in range(48)]


def test_measure_class_video_one_motion_alone_is_five_sixths_from_uniform(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = KnownCascade({"base_class_video": painted_clips(class_captions(["left"])).roll(1, dims=0)})
    figures = values(measured(measure_class_video, cascade, painted, monkeypatch))
    assert figures["motion_distance"] == pytest.approx(5 / 6)
    assert figures["pair"] == 0, "each clip is that of the class before"


def test_measure_class_images_reads_single_frames(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [PAIRS[number % 18] for number in range(36)]
    images = painted_clips([f"a plain {colour} {shape}" for shape, colour in pairs])
    assert images.shape == (36, 3, 1, 32, 32)
    figures = values(measured(measure_class_images, KnownCascade({"base_class_images": images}), painted, monkeypatch))
    assert figures["shape"] == figures["colour"] == figures["pair"] == 1 and figures["iou"] > 0.98
    wrong = KnownCascade({"base_class_images": images.roll(1, dims=0)})  # PAIRS has the shapes of a colour one after the other
    figures = values(measured(measure_class_images, wrong, painted, monkeypatch))
    assert figures["shape"] == figures["pair"] == 0 and figures["colour"] == pytest.approx(2 / 3)


def test_measure_frame_prediction_on_true_clips_is_right(painted: Path, true: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = KnownCascade({"base_frame_prediction": true})
    found = measured(measure_frame_prediction, cascade, painted, monkeypatch)
    figures = values(found)
    assert figures["motion"] == figures["shape"] == figures["colour"] == figures["all"] == 1 and figures["iou"] > 0.97
    assert figures["position_error"] < 0.3 and found.figures["iou"].cases == len(true)
    moving = [parse_caption(entry.caption).motion in MOTIONS[:4] for entry in Index(painted, "val").videos]
    # 6 steps of 5.5 pixels of 128 in 12 frames, two frames each; the first new frame is still at the last given place.
    steps = np.mean([max(0, (frame // 2) - 2) for frame in range(5, 17)])
    assert figures["position_error_still"] == pytest.approx(np.mean(moving) * steps * 5.5 / 4, abs=0.3)
    (request,) = cascade.requests
    assert torch.equal(request.context_latents["base_frame_prediction"], true[:, :, :5])
    assert set(request.prompts) == {""}


def test_measure_frame_prediction_reads_the_new_frames_alone(painted: Path, true: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = torch.cat([true[:, :, :5], true[:, :, 5:].flip(2)], dim=2)
    figures = values(measured(measure_frame_prediction, KnownCascade({"base_frame_prediction": backwards}), painted, monkeypatch))
    assert figures["motion"] == figures["all"] == 0 and figures["shape"] == figures["colour"] == 1
    shifted = true.clone()
    for clip, entry in zip(shifted, Index(painted, "val").videos, strict=True):
        # Across the motion, towards the middle, so that no part of the object goes over the edge.
        axis = 2 if parse_caption(entry.caption).motion in ("up", "down") else 1
        bright = (clip.amax(0) > -0.3).float().mean(0).sum(1 - (axis - 1))
        middle = float((bright * torch.arange(32)).sum() / bright.sum())
        clip[:, 5:] = clip[:, 5:].roll(3 if middle < 16 else -3, dims=axis + 1)
    figures = values(measured(measure_frame_prediction, KnownCascade({"base_frame_prediction": shifted}), painted, monkeypatch))
    assert figures["position_error"] == pytest.approx(3, abs=0.2)


def test_measure_image_to_video_compares_the_first_frame_with_the_given_one(
    painted: Path, true: Tensor, captions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = KnownCascade({"base_image_to_video": true})
    figures = values(measured(measure_image_to_video, cascade, painted, monkeypatch))
    assert figures["all"] == 1 and figures["iou"] > 0.97
    assert figures["first_frame_psnr"] == figures["first_frame_psnr_autoencoder"] == pytest.approx(106, abs=0.1)
    assert torch.equal(cascade.requests[0].context_latents["base_image_to_video"], true[:, :, :1])
    assert list(cascade.requests[0].prompts) == captions
    brighter = true.clone()
    brighter[:, :, 0] += 0.1
    figures = values(measured(measure_image_to_video, KnownCascade({"base_image_to_video": brighter}), painted, monkeypatch))
    assert figures["first_frame_psnr"] == pytest.approx(20 * math.log10(2 / 0.1), abs=1e-3)
    assert figures["first_frame_psnr_autoencoder"] == pytest.approx(106, abs=0.1)


@pytest.mark.parametrize(("stage", "measure"), [("base_9x16", measure_aspect_finetuned), ("base_9x16_scratch", measure_aspect_scratch)])
def test_measure_aspect_on_true_wide_clips_is_right(
    stage: str, measure: Measure, painted: Path, captions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = painted_clips(captions, aspect=1.75)
    assert clips.shape[-2:] == (32, 56)
    figures = values(measured(measure, KnownCascade({stage: clips}), painted, monkeypatch))
    assert figures["all"] == 1 and figures["iou"] > 0.98
    figures = values(measured(measure, KnownCascade({stage: clips.flip(2)}), painted, monkeypatch))
    assert figures["motion"] == figures["all"] == 0 and figures["shape"] == 1


def test_measure_super_resolution_reads_textures_at_64_pixels(painted: Path, captions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = painted_clips(captions), painted_clips(captions, size=64)
    figures = values(measured(measure_super_resolution, KnownCascade({"base": low, "sr1": high}), painted, monkeypatch))
    assert figures["texture"] == figures["shape"] == 1 and figures["iou"] > 0.98 and figures["iou_base"] > 0.98
    enlarged = low.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    figures = values(measured(measure_super_resolution, KnownCascade({"base": low, "sr1": enlarged}), painted, monkeypatch))
    low = torch.full_like(low, -0.7)  # no object
    blank = values(measured(measure_super_resolution, KnownCascade({"base": low, "sr1": high}), painted, monkeypatch))
    assert blank["iou_base"] == 0 and blank["iou"] > 0.98
    assert figures["texture"] == np.mean([parse_caption(caption).texture == "plain" for caption in captions])


def test_measure_guidance_spread_is_that_of_real_clips(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "SHORT_SEEDS", 6)
    monkeypatch.setattr(guidance, "SCALES", (1.0, 5.0))
    prompts = [scene.caption for scene in guidance._choose_prompts()]
    assert len(prompts) == len(set(prompts)) == 18
    clips = painted_clips([caption for caption in prompts for _ in range(6)])
    cascade = KnownCascade({"base": clips})
    found = measured(measure_guidance, cascade, painted, monkeypatch)
    for scale in ("1", "5"):
        assert found.figures[f"all_{scale}"].value == 1 and found.figures[f"iou_{scale}"].value > 0.98
        spread = found.figures[f"spread_{scale}"]
        assert spread.value == pytest.approx(1, abs=0.2) and spread.cases == 18
    assert [sampling.guidance["base"].scale for sampling in cascade.sampling] == [1.0] * 4 + [5.0] * 4
    alike = clips[::6].repeat_interleave(6, dim=0)
    figures = values(measured(measure_guidance, KnownCascade({"base": alike}), painted, monkeypatch))
    assert figures["spread_1"] == pytest.approx(0, abs=1e-6)
    one_wrong = torch.cat([clips[-1:], clips[1:]])  # Student's interval of 18 prompts would reach above 100 %
    share = measured(measure_guidance, KnownCascade({"base": one_wrong}), painted, monkeypatch).figures["all_1"]
    assert share.value == pytest.approx(1 - 1 / 108) and share.value < share.high < 1


def test_real_variances_are_those_of_the_uniform_draw() -> None:
    """A growing circle has a uniform centre that keeps the margin, on a lattice of waves, whose rounding adds a variance."""
    prompts = guidance._choose_prompts()
    (place,) = [number for number, prompt in enumerate(prompts) if (prompt.shape, prompt.motion) == ("circle", "growing")]
    margins = np.linspace(0.325, 0.34, 101) - 0.018
    axis = np.mean((1 - 2 * margins) ** 2) / 12 + (5.5 / 128) ** 2 / 12
    assert float(guidance._real_variances(prompts, 32)[place]) == pytest.approx(2 * axis * 32**2, rel=0.15)
