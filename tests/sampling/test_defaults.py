"""Guidance and rate of `sample` where the command line does not say: those that the artifacts keep."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.helpers.environment import Walt
from walt_pl.cli.sample import sample
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.media.reading import read_video
from walt_pl.media.writing import write_video
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.manifest import Manifest
from walt_pl.sampling.cascade import Cascade

BASE, SR1 = Guidance(4.0, "power-cosine", 2.0, rescale=0.5), Guidance(2.0)
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a finished run of random models for 3 classes: clips of 9 frames, 16 px and 32 px, with some settings by stage."""

    def make(**settings: dict[str, Any]) -> Path:
        torch.manual_seed(0)
        run = tmp_path / "run"
        manifest = Manifest.open(run)
        small = {"width": 16, "depth": 2, "num_heads": 2, "window_size": (3, 2, 2), "num_classes": 3, "frame_prediction": 0.1}
        models: dict[str, nn.Module] = {
            "vae": VAE(VAEConfig(8, (1, 1, 1), ((2, 2, 2), (2, 2, 2)), (0, 1, 1), 0, norm="layer")),
            "base": Denoiser(DenoiserConfig(size=(3, 4, 4), **small)),  # type: ignore[arg-type]
            "sr1": Denoiser(DenoiserConfig(size=(3, 8, 8), patch_size=2, super_resolution=True, **small)),  # type: ignore[arg-type]
        }
        always = {"diffusion": DiffusionConfig(noise_aug_level=20).to_plain()}
        hashes: dict[str, str] = {}
        for stage, model in models.items():
            if stage != "vae":
                for parameter in model.parameters():
                    nn.init.normal_(parameter, std=0.2)
            parents = {parent: hashes[parent] for parent in ("vae", "base") if parent in hashes}
            manifest.start(stage, parents)
            hashes[stage] = save_artifact(
                run / stage,
                kind={"sr1": "super_resolution"}.get(stage, stage),
                models={"vae" if stage == "vae" else "denoiser": model},
                sampling_config={} if stage == "vae" else {**always, **settings.get(stage, {})},
                card={"parents": parents, "latents": {"mean": [0.5] * 8, "std": [2.0] * 8}},
                train_config="",
            )
            manifest.finish(stage, run / stage)
        return run

    return make


@pytest.fixture
def sampled(walt: Walt, tmp_path: Path) -> Callable[..., bytes]:
    """Type `sample` and give the bytes of the clip."""

    def sample(run: Path, *typed: str) -> bytes:
        out = tmp_path / "clip.mp4"
        common = ["--label", "1", "--steps", "3", "--dtype", "float32", "--out", str(out), "--overwrite"]
        walt("sample", "--run", str(run), *common, *typed)
        return out.with_suffix(".gif").read_bytes()  # x264 now and then encodes the same frames otherwise

    return sample


def test_sample_command_guidance_default_is_that_of_each_artifact(make_run: MakeRun, sampled: Callable[..., bytes]) -> None:
    # The power of 2 cannot be typed: these flags change what they name, and nothing else of the artifact's guidance.
    guides = {"base": BASE, "sr1": SR1}
    run = make_run(**{stage: {"diffusion": DiffusionConfig(noise_aug_level=20, guidance=g).to_plain()} for stage, g in guides.items()})
    default = sampled(run)
    scales = '{"base": 4, "sr1": 2}'
    assert sampled(run, "--guidance", scales) == sampled(run, "--guidance", '{"base": 4}') == default
    assert sampled(run, "--stages", "base", "--guidance-shape", "power-cosine", "--guidance-rescale", "0.5") == sampled(
        run, "--stages", "base"
    )
    others = {
        "none": ("--guidance", "1"),
        "another base": ("--guidance", '{"base": 5}'),
        "another sr1": ("--guidance", '{"sr1": 1}'),
        "another shape": ("--guidance-shape", "constant"),
        "another rescale": ("--guidance-rescale", "0"),
    }
    clips = {name: sampled(run, *typed) for name, typed in others.items()}
    assert len({default, *clips.values()}) == 1 + len(others)


def test_sample_command_guidance_is_one_where_the_artifact_has_none(make_run: MakeRun, sampled: Callable[..., bytes]) -> None:
    run = make_run()
    assert sampled(run) == sampled(run, "--guidance", "1")
    assert sampled(run) != sampled(run, "--guidance", "2")


def written(clip: Path) -> tuple[Fraction | None, int]:
    """Rate and number of frames of a file."""
    with av.open(str(clip)) as container:
        return container.streams.video[0].average_rate, sum(1 for _ in container.decode(video=0))


def test_sample_command_fps_default_is_that_of_the_artifact(make_run: MakeRun, walt: Walt, tmp_path: Path) -> None:
    film = {"video": {"fps": 24000 / 1001}}
    run, out = make_run(base=film, sr1=film), tmp_path / "clip.mp4"
    typed = ["sample", "--run", str(run), "--label", "1", "--steps", "1", "--out", str(out), "--overwrite"]
    said = walt(*typed, "--seconds", "0.25").said
    assert written(out) == (Fraction(24000, 1001), 6) and "frames a second" not in said
    walt(*typed, "--seconds", "0.25", "--fps", "12")
    assert written(out) == (12, 3)
    with Image.open(out.with_suffix(".gif")) as picture:
        assert picture.info["duration"] == 80  # milliseconds, in hundredths of a second


def test_sample_command_fps_is_8_where_artifacts_have_none_and_says_so(make_run: MakeRun, walt: Walt, tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "clip.mp4"
    typed = ["sample", "--run", str(run), "--label", "1", "--steps", "1", "--out", str(out), "--overwrite"]
    said = " ".join(walt(*typed, "--seconds", "0.5").said.split())
    assert "the artifacts do not say at which rate they were trained; taking 8 frames a second (--fps)" in said
    assert written(out) == (8, 4)
    assert "frames a second" not in walt(*typed, "--fps", "12").said


def test_sample_command_fps_is_that_of_the_base_where_stages_differ_and_says_so(make_run: MakeRun, walt: Walt, tmp_path: Path) -> None:
    run, out = make_run(base={"video": {"fps": 10.0}}, sr1={"video": {"fps": 12.0}}), tmp_path / "clip.mp4"
    typed = ["sample", "--run", str(run), "--label", "1", "--steps", "1", "--out", str(out), "--overwrite"]
    said = " ".join(walt(*typed).said.split())
    assert 'different rates ("base" at 10, "sr1" at 12 frames a second); taking 10, that of "base"' in said
    assert written(out) == (10, 9)
    assert "different rates" not in walt(*typed, "--stages", "base").said


def test_sample_command_continue_reads_the_clip_at_the_fps_of_the_model(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a clip at 20 frames a second, a model of 10 is given every second frame, the last one among them."""
    frames = np.random.default_rng(0).integers(256, size=(12, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "given.mp4", frames, 20)
    given = read_video(tmp_path / "given.mp4", 12)
    asked: list[np.ndarray[Any, Any]] = []
    encode_context = Cascade.encode_context

    def spy(self: Cascade, pictures: np.ndarray[Any, Any], *more: Any) -> dict[str, torch.Tensor]:
        asked.append(pictures)
        return encode_context(self, pictures, *more)

    monkeypatch.setattr(Cascade, "encode_context", spy)
    run = str(make_run(base={"video": {"fps": 10.0}}))
    common: dict[str, Any] = {"label": 1, "steps": 1, "stages": "base", "out": str(tmp_path / "clip.mp4"), "overwrite": True}
    sample(run, continue_=str(tmp_path / "given.mp4"), **common)
    sample(run, continue_=str(tmp_path / "given.mp4"), fps=20.0, **common)  # the rate of what is written
    for pictures in asked:
        np.testing.assert_array_equal(pictures, given[[3, 5, 7, 9, 11]])
    write_video(tmp_path / "short.mp4", frames[:8], 20)
    with pytest.raises(ValueError, match=r"short.mp4: found 4 frames at 10 a second, wanted at least the 5"):
        sample(run, continue_=str(tmp_path / "short.mp4"), **common)
