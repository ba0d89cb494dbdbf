"""From prompts to latents, with small random models."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.environment import ROOT
from tests.helpers.tiny_stages import CAPTIONS, write_stages
from walt_pl.cli.sample import sample
from walt_pl.data.transforms import to_square
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.media.reading import read_video
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_image, write_video
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.runs.artifact import Artifact, load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.card import read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.manifest_records import ArtifactRecord, StageRecord
from walt_pl.runs.stage_names import kind_of
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An autoencoder, a base model from text and a super-resolution stage, with weights that are not zero."""
    return write_stages(tmp_path_factory.mktemp("run"))


def test_cascade_clip_does_not_depend_on_others_of_its_batch(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    sampling = SamplingConfig(steps=3, eta=0.5, guidance={"base": Guidance(2.0)})
    both = cascade.sample(SampleRequest(prompts=CAPTIONS, seeds=[3, 4]), sampling)
    alone = cascade.sample(SampleRequest(prompts=CAPTIONS[1:], seeds=[4]), sampling)
    assert list(both) == ["base", "sr1"]
    for stage in both:
        torch.testing.assert_close(both[stage][1:], alone[stage], rtol=1e-4, atol=1e-4)


def test_cascade_steps_can_be_given_by_stage(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    request = SampleRequest(prompts=CAPTIONS[:1], seeds=[3])
    mixed, taken = SamplingConfig(steps={"base": 3, "sr1": 2}), []
    made = cascade.sample(request, mixed, lambda: taken.append(1))
    assert len(taken) == cascade.num_evaluations(mixed, cascade.clip_frames) == 5
    assert torch.equal(made["base"], cascade.sample_stage("base", request, SamplingConfig(steps=3)))
    assert mixed.steps_of("sr2") == 50


def test_cascade_sample_depends_on_prompt_and_seed(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    first, other_prompt, other_seed = (
        cascade.sample_stage("base", SampleRequest(prompts=[prompt], seeds=[seed]), SamplingConfig(steps=2))
        for prompt, seed in ((CAPTIONS[0], 1), (CAPTIONS[1], 1), (CAPTIONS[0], 2))
    )
    assert not torch.allclose(first, other_prompt)
    assert not torch.allclose(first, other_seed)


def test_cascade_negative_prompt_replaces_the_unconditional_branch(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    sampling = SamplingConfig(steps=2, guidance={"base": Guidance(3.0)})
    request = SampleRequest(prompts=CAPTIONS[:1], seeds=[1])
    plain = cascade.sample_stage("base", request, sampling)
    led_away = cascade.sample_stage("base", SampleRequest(prompts=CAPTIONS[:1], negative_prompt=CAPTIONS[1], seeds=[1]), sampling)
    assert not torch.allclose(plain, led_away)
    # Away from what is asked for is nowhere: u + w (c - u) with u = c is c.
    itself = SampleRequest(prompts=CAPTIONS[:1], negative_prompt=CAPTIONS[0], seeds=[1])
    torch.testing.assert_close(
        cascade.sample_stage("base", itself, sampling), cascade.sample_stage("base", request, SamplingConfig(steps=2))
    )


@pytest.fixture(scope="module")
def going_on(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """A cascade with a base model of 4 px and 1 + 4 x 2 = 9 frames that knows frame prediction."""
    folder = tmp_path_factory.mktemp("past") / "base"
    denoiser = random_denoiser(size=(3, 4, 4), frame_prediction=0.1)
    save_base(folder, denoiser, text=load(folders["base"]))
    return Cascade({**folders, "base": folder}, dtype=torch.float32)


def random_denoiser(**config: Any) -> Denoiser:
    torch.manual_seed(1)
    denoiser = Denoiser(DenoiserConfig(**{"width": 16, "depth": 2, "num_heads": 2, "text_width": 16, "window_size": (3, 2, 2), **config}))
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.2)
    return denoiser


def save_base(folder: Path, denoiser: Denoiser, text: Artifact | None, parents: dict[str, str] | None = None, **diffusion: Any) -> None:
    settings = {"diffusion": DiffusionConfig(**diffusion).to_plain()}
    models = {"denoiser": denoiser, **({"text": text.models["text"]} if text else {})}
    files = {"tokenizer.model": text.read("tokenizer.model")} if text else {}
    save_artifact(
        folder, kind="base", models=models, sampling_config=settings, card={"parents": parents or {}}, train_config="", files=files
    )


def latents(count: int, side: int = 4, clips: int = 2) -> torch.Tensor:
    return 2 * torch.randn(clips, 8, count, side, side, generator=torch.Generator().manual_seed(count)) + 0.5


@pytest.mark.parametrize("count", [1, 2])
def test_cascade_context_frames_come_back_unchanged_at_every_stage(going_on: Cascade, count: int) -> None:
    context_latents = {"base": latents(count), "sr1": latents(count, side=8)}
    request = SampleRequest(prompts=CAPTIONS, seeds=[3, 4], context_latents=context_latents)
    made = going_on.sample(request, SamplingConfig(steps=3, eta=0.5, guidance={"base": Guidance(2.0, rescale=0.5)}))
    free = going_on.sample(replace(request, context_latents={}), SamplingConfig(steps=3, eta=0.5))
    for stage in ("base", "sr1"):
        torch.testing.assert_close(made[stage][:, :, :count], context_latents[stage], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(made[stage][:, :, count:], free[stage][:, :, count:]), "what follows depends on it"


def test_cascade_guidance_of_one_over_context_is_the_conditional_model(going_on: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without a caption, so that the past is all there is to guide over."""
    request = SampleRequest(prompts=["", ""], seeds=[3, 4], context_latents={"base": latents(2)})
    told: list[list[float]] = []
    run = Denoiser.forward

    def spy(self: Denoiser, x: Any, step: Any, condition: Any, *more: Any) -> torch.Tensor:
        told.append(condition.context_mask[:, 0, 0, 0].tolist())
        return run(self, x, step, condition, *more)

    monkeypatch.setattr(Denoiser, "forward", spy)
    plain = going_on.sample_stage("base", request, SamplingConfig(steps=2))
    assert torch.equal(going_on.sample_stage("base", request, SamplingConfig(steps=2, guidance={"base": Guidance(1.0)})), plain)
    assert told == [[1, 1, 0] * 2] * 4
    led = going_on.sample_stage("base", request, SamplingConfig(steps=2, guidance={"base": Guidance(3.0)}))
    assert told[4:] == [[1, 1, 0] * 2 + [0] * 6] * 2, "the unconditional branch knows nothing of the past"
    assert not torch.allclose(led[:, :, 2:], plain[:, :, 2:])


def test_cascade_clip_with_context_does_not_depend_on_others_of_its_batch(going_on: Cascade) -> None:
    request = SampleRequest(prompts=CAPTIONS, seeds=[3, 4], context_latents={"base": latents(2)})
    both = going_on.video(request, SamplingConfig(steps=2), frames=13)
    assert torch.equal(going_on.video(request, SamplingConfig(steps=2), frames=13), both), "same seed, same bytes"
    torch.testing.assert_close(going_on.video(request.part(1, 1), SamplingConfig(steps=2), frames=13), both[1:], rtol=1e-3, atol=1e-3)


def test_cascade_end_of_a_segment_is_the_context_of_the_next_at_every_stage(going_on: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SampleRequest] = []
    made: list[dict[str, torch.Tensor]] = []
    sample = going_on.sample

    def spy(request: SampleRequest, *more: Any) -> dict[str, torch.Tensor]:
        asked.append(request)
        made.append(sample(request, *more))
        return made[-1]

    monkeypatch.setattr(going_on, "sample", spy)
    steps = []
    request = SampleRequest(prompts=CAPTIONS, seeds=[3, 4])
    long = going_on.video(request, SamplingConfig(steps=2), 17, lambda: steps.append(1))
    assert long.shape == (2, 3, 17, 32, 32) and len(asked) == 3, "9 frames, and 4 new ones in each of two rounds"
    assert len(steps) == going_on.num_evaluations(SamplingConfig(steps=2), 17) == 2 * 2 * 3
    for before, after in zip(range(2), range(1, 3), strict=True):
        for stage in ("base", "sr1"):
            end = going_on.decode(made[before][stage])[:, :, -5:]
            assert torch.equal(asked[after].context_latents[stage], going_on.encode(end))
            torch.testing.assert_close(made[after][stage][:, :, :2], asked[after].context_latents[stage], rtol=1e-5, atol=1e-5)
    for number, start in ((0, 0), (1, 9), (2, 13)):
        piece = going_on.decode(made[number]["sr1"])[:, :, 5 if number else 0 :]
        assert torch.equal(long[:, :, start : start + piece.shape[2]], piece), "no frame of the overlap is shown twice"
    assert torch.equal(going_on.video(request, SamplingConfig(steps=2), 9), long[:, :, :9])
    again = going_on.sample_stage("base", replace(asked[1], segment=0), SamplingConfig(steps=2))
    assert not torch.allclose(again[:, :, 2:], made[1]["base"][:, :, 2:]), "rounds have noise of their own"


@pytest.mark.parametrize(
    "factor, frames, num_segments",
    [(4, 1, 1), (4, 17, 1), (4, 18, 2), (4, 29, 2), (4, 30, 3), (4, 80, 7), (2, 9, 1), (2, 15, 2), (1, 5, 1), (1, 8, 2)],
)
def test_cascade_long_video_has_no_gap_between_segments(
    going_on: Cascade, monkeypatch: pytest.MonkeyPatch, factor: int, frames: int, num_segments: int
) -> None:
    """Five latents a clip, and pixels that hold their own number: 17 + 12 = 29 frames after two rounds (docs/METHOD.md, section 3.7)."""
    length, calls = 1 + 4 * factor, []

    def sample(request: SampleRequest, *more: Any) -> dict[str, torch.Tensor]:
        calls.append(request.segment)
        first = request.context_latents["base"][0, 0, 0, 0, 0] if request.context_latents else torch.tensor(0.0)
        return {stage: first + torch.zeros(1, 1, 5, 1, 1) for stage in ("base", "sr1")}

    monkeypatch.setattr(going_on, "vae", SimpleNamespace(factors=(factor, 8, 8)))
    monkeypatch.setattr(Cascade, "clip_frames", length)
    monkeypatch.setattr(going_on, "sample", sample)
    monkeypatch.setattr(going_on, "decode", lambda z, _: z[:, :, :1] + torch.arange(length)[:, None, None])
    monkeypatch.setattr(going_on, "encode", lambda clip: clip[:, :, :1].expand(-1, -1, 2, -1, -1))
    made = going_on.video(SampleRequest(prompts=[""], seeds=[0]), SamplingConfig(), frames)
    assert made.flatten().tolist() == list(range(frames))
    assert calls == list(range(num_segments))
    assert going_on.num_evaluations(SamplingConfig(steps=5), frames) == 5 * 2 * num_segments


def test_cascade_clip_frames_follow_from_the_latents_of_the_vae(going_on: Cascade) -> None:
    assert (going_on.clip_frames, going_on.overlap) == (9, 5)
    assert going_on.video(SampleRequest(prompts=CAPTIONS[:1], seeds=[0]), SamplingConfig(steps=1), 9).shape[2] == 9


def test_cascade_kinetics_continues_without_text_and_guidance_and_requires_context(folders: dict[str, Path], tmp_path: Path) -> None:
    denoiser = random_denoiser(size=(3, 4, 4), frame_prediction=1.0, text_width=None)
    save_base(tmp_path / "base", denoiser, None, context_frames=(2,))
    cascade = Cascade({"vae": folders["vae"], "base": tmp_path / "base"}, dtype=torch.float32)
    alone = SampleRequest(prompts=[""], seeds=[0])
    given = replace(alone, context_latents={"base": latents(2, clips=1)})
    assert cascade.video(given, SamplingConfig(steps=2), 13).shape == (1, 3, 13, 16, 16)
    for request, sampling, said in (
        (alone, SamplingConfig(steps=1), "give it some with --continue"),
        (replace(alone, context_latents={"base": latents(1, clips=1)}), SamplingConfig(steps=1), "the end of a clip, not from an image"),
        (given, SamplingConfig(steps=1, guidance={"base": Guidance(2.0)}), "guidance no other branch"),
    ):
        with pytest.raises(ValueError, match=said):
            cascade.video(request, sampling, 9)


def test_cascade_super_resolution_refuses_context_it_was_not_trained_on(going_on: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = going_on.stages[-1]
    sampler = going_on.samplers[stage]
    network = SimpleNamespace(config=replace(sampler.denoiser.config, frame_prediction=0.1))
    config = replace(sampler.config, context_frames=(2,))
    monkeypatch.setitem(going_on.samplers, stage, replace(sampler, denoiser=network, config=config))
    image = SampleRequest(prompts=CAPTIONS[:1], seeds=[0], context_latents={"base": latents(1, clips=1), stage: latents(1, clips=1)})
    with pytest.raises(ValueError, match=f'stage "{stage}" was trained to go on from the end of a clip, not from an image'):
        going_on.check(image, SamplingConfig(steps=1), 9)
    going_on.check(replace(image, context_latents={"base": latents(1, clips=1)}), SamplingConfig(steps=1), 9)


def test_cascade_class_model_continues_a_clip(folders: dict[str, Path], tmp_path: Path) -> None:
    denoiser = random_denoiser(size=(3, 4, 4), frame_prediction=0.1, text_width=None, num_classes=3)
    save_base(tmp_path / "base", denoiser, None, context_frames=(1,))
    cascade = Cascade({"vae": folders["vae"], "base": tmp_path / "base"}, dtype=torch.float32)
    request = SampleRequest(labels=[0, 2], seeds=[0, 1], context_latents={"base": latents(1)})
    assert cascade.video(request, SamplingConfig(steps=2, guidance={"base": Guidance(2.0)}), 9).shape[:3] == (2, 3, 9)
    with pytest.raises(ValueError, match="from an image, not from the end of a clip"):
        cascade.video(request, SamplingConfig(steps=1), 13)


def test_cascade_refuses_context_without_frame_prediction_before_sampling(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    request = SampleRequest(prompts=CAPTIONS, seeds=[3, 4])
    for asked, frames in ((request, 10), (replace(request, context_latents={"base": latents(1)}), 9)):
        with pytest.raises(ValueError, match=r"without frame prediction.*more than 9 frames; train it"):
            cascade.video(asked, SamplingConfig(steps=1), frames, lambda: pytest.fail("a step was made"))
    assert cascade.video(request, SamplingConfig(steps=1), 4).shape[2] == 4, "shorter is only cut"


def test_cascade_encode_context_serves_stages_the_picture_is_large_enough_for(going_on: Cascade) -> None:
    picture = torch.randint(256, (1, 40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    context_latents = going_on.encode_context(picture, "p.png")
    assert {stage: tuple(z.shape) for stage, z in context_latents.items()} == {"base": (1, 8, 1, 4, 4), "sr1": (1, 8, 1, 8, 8)}
    torch.testing.assert_close(context_latents["sr1"], going_on.encode(to_square(picture, 32)[None]))
    assert list(going_on.encode_context(picture[:, :32, :32], "p.png")) == ["base", "sr1"], "sr1 makes 32 px"
    assert list(going_on.encode_context(picture[:, :31, :31].repeat(5, 0), "p.mp4")) == ["base"]
    with pytest.raises(ValueError, match=r"p.png: found 40 x 30 pixels, but this run makes 16 x 16: .*--crop true"):
        going_on.encode_context(picture[:, :30], "p.png")
    cut = going_on.encode_context(picture[:, :30], "p.png", crop=True)
    torch.testing.assert_close(cut["base"], going_on.encode(to_square(picture[:, :30], 16)[None]))


@pytest.fixture(scope="module")
def run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the autoencoder and a base model that goes on."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(folders["vae"], run / "vae")
    manifest = Manifest.open(run)
    manifest.start("vae", {})
    manifest.finish("vae", run / "vae")
    parents = {"vae": load(run / "vae").sha256}
    manifest.start("base", parents)
    denoiser = random_denoiser(size=(3, 4, 4), frame_prediction=0.1)
    save_base(run / "base", denoiser, load(folders["base"]), parents, guidance=Guidance(2.0))
    manifest.finish("base", run / "base")
    return run


def test_documentation_code_makes_the_clip_of_sample_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "EXPORT.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code.count("runs/shapes/vae") == code.count("artifacts/base-500") == 1
    monkeypatch.chdir(tmp_path)
    exec(code.replace("runs/shapes/vae", str(run / "vae")).replace("artifacts/base-500", str(run / "base")), {})
    sample(str(run), "a plain red circle moving left", seed=0, steps=20, out="program.mp4")
    # Not the bytes: x264 reads a little memory that nobody wrote, and now and then encodes the same frames otherwise.
    clip, program = (read_video(Path(name), 9).astype(int) for name in ("clip.mp4", "program.mp4"))
    assert abs(clip - program).mean() < 5, "of 255; another clip differs by tens"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Pictures and clips, right and wrong."""
    frames = torch.randint(256, (12, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    write_image(tmp_path / "square.png", frames[0])
    write_image(tmp_path / "wide.png", frames[0].repeat(2, 1))
    write_video(tmp_path / "long.mp4", frames, 8)
    write_video(tmp_path / "short.mp4", frames[:4], 8)
    write_video(tmp_path / "wide.mp4", frames.repeat(2, 2), 8)
    (tmp_path / "latin1.txt").write_bytes("ein Käfer".encode("latin1"))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "empty.mp4").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"image": "wide.png"}, "found 32 x 16 pixels, but this run makes 16 x 16"),
        ({"continue_": "wide.mp4"}, "found 32 x 16 pixels, but this run makes 16 x 16"),
        ({"continue_": "short.mp4"}, "short.mp4: found 4 frames, wanted at least the 5"),
        ({"image": "text.png"}, "text.png: not an image"),
        ({"image": "none.png"}, "none.png: there is no such file"),
        ({"continue_": "text.mp4"}, "text.mp4: not a video"),
        ({"continue_": "empty.mp4"}, "empty.mp4: the file is empty"),
        ({"image": "square.png", "continue_": "long.mp4"}, "give one of --image and --continue"),
        ({"seconds": 0.0}, "--seconds must be above 0"),
        ({"seconds": -1.0}, "--seconds must be above 0"),
        ({"seconds": math.nan}, "--seconds must be above 0"),
        ({"seconds": math.inf}, "--seconds must be above 0"),
        ({"seconds": 0.01}, "--seconds must be 0.125 .one frame at 8 frames a second. or more, got 0.01"),
        ({"seconds": 0.01, "fps": 20.0}, "--seconds must be 0.05 .one frame at 20 frames"),
        ({"seconds": 10.0, "stages": "sr1"}, "stages run from base upwards"),
        ({"stages": "vae"}, "stages run from base upwards"),
        ({"fps": 0.0}, "--fps must be above 0"),
        ({"guidance": -1.0}, "scale must be 0 or more"),
        ({"guidance": {"base": -1.0}}, "scale must be 0 or more"),
        ({"image": "square.png", "guidance": -0.5}, "scale must be 0 or more"),
        ({"prompt": None}, "give one of --prompt, --prompts and --label"),
        ({"prompt": None, "prompts": "latin1.txt"}, "latin1.txt: not UTF-8 .byte 0xe4 at 5."),
        ({"steps": {"sr1": 5}}, "steps names .'sr1'., but the stages that run are"),
    ],
)
def test_sample_command_error_is_one_sentence_and_writes_nothing(run: Path, files: Path, asked: dict[str, Any], said: str) -> None:
    given = {name: str(files / value) if name in ("image", "continue_", "prompts") and value else value for name, value in asked.items()}
    with pytest.raises((ValueError, MediaError), match=said) as raised:
        sample(**{"run": str(run), "prompt": CAPTIONS[0], "steps": 1, "out": str(files / "new" / "clip.mp4"), **given})
    assert "\n" not in str(raised.value)
    assert not (files / "new").exists()


def test_sample_command_continues_from_the_last_frames_of_a_clip(run: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[SampleRequest, int]] = []
    video = Cascade.video

    def spy(self: Cascade, request: SampleRequest, sampling: SamplingConfig, frames: int, *more: Any) -> torch.Tensor:
        asked.append((request, frames))
        return video(self, request, sampling, frames, *more)

    monkeypatch.setattr(Cascade, "video", spy)
    clip, out = str(files / "long.mp4"), str(files / "new" / "clip.mp4")
    prompts = files / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS))
    sample(str(run), prompts=str(prompts), continue_=clip, seconds=1.5, steps=1, batch=1, out=out, dtype="float32")
    end = Cascade.open(run, dtype=torch.float32).encode_context(read_video(files / "long.mp4", 12)[-5:], clip)["base"]
    assert [frames for _, frames in asked] == [12, 12]
    assert all(torch.equal(request.context_latents["base"], end) for request, _ in asked), "both prompts, one at a time"
    assert len(read_video(files / "new" / "clip_001.mp4", 12)) == 12
    # Without words a text model goes on from the picture alone.
    sample(str(run), image=str(files / "wide.png"), crop=True, steps=1, out=out, overwrite=True)
    assert len(read_video(Path(out), 9)) == 9


def test_cascade_super_resolution_refuses_missing_low_res(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="latents of the stage before"):
        Cascade(folders).sample_stage("sr1", SampleRequest(prompts=CAPTIONS[:1], seeds=[1]), SamplingConfig(steps=1))


def test_cascade_refuses_stages_that_do_not_double_the_size(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r'"sr2" makes latents of \(3, 8, 8\) from half of that, but "sr1" makes \(3, 8, 8\)'):
        Cascade({**folders, "sr2": folders["sr1"]})


def finished(name: str, folder: Path) -> StageRecord:
    left = ArtifactRecord(name, read_card(folder)["sha256"], {}, {}, None, "2026-01-31T12:00:00+00:00")
    return StageRecord(name, kind_of(name), artifact=left)


def test_cascade_open_selects_one_of_several_base_models(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"vae": "vae", "base_l": "base", "base_xl": "base", "sr1": "sr1"}
    stages = {name: finished(name, folders[of]) for name, of in names.items()} | {"base_s": StageRecord("base_s", "base")}
    monkeypatch.setattr(Manifest, "stages", lambda _: stages)
    monkeypatch.setattr(Manifest, "usable", lambda _, stages, stale: {stage: folders[names[stage]] for stage in stages})
    with pytest.raises(ValueError, match="has the base models base_l, base_xl; choose one: --stages base_l"):
        Cascade.open(tmp_path)
    cascade = Cascade.open(tmp_path, ["base_xl"])
    assert cascade.stages == ["base_xl"] and cascade.text is not None
    with pytest.raises(ValueError, match='trained with the words of "base", not of "base_xl"'):
        Cascade.open(tmp_path, ["base_xl", "sr1"])
    for gap in (["sr1"], ["base_l", "base_xl"]):
        with pytest.raises(ValueError, match="without a gap"):
            Cascade.open(tmp_path, gap)


def test_cascade_open_refuses_stale_stages_unless_allowed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = []

    def usable(_: Manifest, stages: list[str], allow_stale: bool) -> dict[str, Path]:
        allowed.append(allow_stale)
        return {stage: folders[stage] for stage in stages}

    stages = {name: finished(name, folder) for name, folder in folders.items()}
    monkeypatch.setattr(Manifest, "stages", lambda _: stages)
    monkeypatch.setattr(Manifest, "usable", usable)
    Cascade.open(tmp_path)
    Cascade.open(tmp_path, allow_stale=True)
    assert allowed == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cascade_computes_in_its_dtype_and_gives_float32(
    folders: dict[str, Path], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = Cascade(folders, dtype=dtype)
    computed: dict[str, set[torch.dtype]] = {"encode": set(), "denoise": set(), "decode": set()}

    def note(part: str, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv3d):
                layer.register_forward_hook(lambda _layer, _inputs, out: computed[part].add(out.dtype))

    note("encode", cascade.vae.encoder)
    note("decode", cascade.vae.decoder)
    note("denoise", cascade.artifacts["base"].models["denoiser"].blocks)
    made = cascade.sample_stage("base", SampleRequest(prompts=CAPTIONS[:1], seeds=[1]), SamplingConfig(steps=1))
    clip = cascade.decode(made)
    cascade.encode(clip)
    assert computed == {part: {dtype} for part in computed}
    assert made.dtype == torch.float32
