"""Computations of the stages beside the training loop."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from stages.base import BaseStage
from stages.latent_statistics import latent_statistics, latent_sums
from stages.optimisation import learning_rate
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.helpers.environment import SetDtype
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch, first_videos
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.diffusion.objective import Denoise
from walt_pl.diffusion.path import alpha_sigma_like
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.sampling.stage_sampler import StageSampler
from walt_pl.text.small_encoder import SmallTextConfig

SMALL = {"width": 16, "depth": 2, "num_heads": 2, "size": (3, 4, 4), "window_size": (3, 2, 2)}


def sgd(parameters: object) -> Optimizer:
    return SGD(parameters, lr=0.1)  # type: ignore[arg-type]


def latent_batch(videos: int = 2, images: int = 3) -> JointBatch:
    s = videos + images
    g = torch.Generator().manual_seed(0)
    return JointBatch(
        videos=torch.randn(videos, 8, 3, 4, 4, generator=g),
        images=torch.randn(images, 8, 1, 4, 4, generator=g),
        captions=["a plain red circle"] * s,
        labels=torch.arange(s),
        weight=torch.ones(s),
        global_batch_index=torch.arange(s),
        low_res_videos=torch.randn(videos, 8, 3, 2, 2, generator=g),
        low_res_images=torch.randn(images, 8, 1, 2, 2, generator=g),
        space="latents",
        paths=["x"] * s,
    )


def test_frame_weight_of_context_frames_and_unreadable_samples_is_zero() -> None:
    stage = BaseStage(DenoiserConfig(**SMALL, frame_prediction=0.1), sgd)  # type: ignore[arg-type]
    batch = latent_batch()
    batch.weight[1] = 0
    layout = FrameLayout(2, 3, 3)
    condition_kept = torch.ones(5, dtype=torch.bool)
    x0, _ = stage.latents(batch.videos, batch.images, "latents")
    condition = Condition(layout, condition_kept).with_context(x0, torch.tensor([2, 1, 2, 0, 0]))
    # First video: two frames given; second: unreadable; images are never given.
    assert stage.frame_weight(batch, condition).tolist() == [0, 0, 1, 0, 0, 0, 1, 1, 1]


def test_condition_with_context_marks_the_first_frames_of_videos_only() -> None:
    layout = FrameLayout(1, 3, 2)
    x0 = torch.randn(5, 8, 4, 4)
    condition = Condition(layout, torch.ones(3, dtype=torch.bool)).with_context(x0, torch.tensor([1, 1, 1]))
    assert condition.context_mask is not None
    assert condition.context_mask[:, 0, 0, 0].tolist() == [1, 0, 0, 0, 0]


def clips_of(count: int) -> JointBatch:
    batch = latent_batch(videos=count, images=2)
    batch.captions[:] = [""] * (count + 2)
    return batch


def given_frames(stage: BaseStage, batch: JointBatch, step: int = 0) -> tuple[Condition, Tensor, Tensor]:
    """The condition of a training step, the clean latents, and how many frames each video was given."""
    x0, layout = stage.latents(batch.videos, batch.images, "latents")
    condition = stage.condition(batch, x0, layout, PerSampleRNG(0, step, batch.global_batch_index))
    assert condition.context_mask is not None
    return condition, x0, condition.context_mask[: layout.video_frames, 0, 0, 0].view(layout.videos, layout.frames).sum(dim=1)


def test_frame_prediction_gives_one_video_in_ten_one_or_two_clean_frames() -> None:
    stage = BaseStage(DenoiserConfig(**SMALL, frame_prediction=0.1), sgd)  # type: ignore[arg-type]
    batch = clips_of(1000)
    condition, x0, counts = given_frames(stage, batch)
    shares = [float((counts == number).float().mean()) for number in (0, 1, 2, 3)]
    assert shares[0] == pytest.approx(0.9, abs=0.03)
    assert shares[1] == pytest.approx(0.05, abs=0.02) and shares[2] == pytest.approx(0.05, abs=0.02)
    assert condition.context_latents is x0, "clean latents, not noisy ones"
    weight = stage.frame_weight(batch, condition)
    assert float(weight.sum()) == len(x0) - float(counts.sum()), "the loss covers the frames that are not given"
    assert torch.equal(given_frames(stage, batch, step=0)[2], counts) and not torch.equal(given_frames(stage, batch, step=1)[2], counts)


def test_frame_prediction_of_one_always_gives_two_context_frames() -> None:
    config = DenoiserConfig(**SMALL, frame_prediction=1.0)  # type: ignore[arg-type]
    stage = BaseStage(config, sgd, diffusion=DiffusionConfig(context_frames=(2,)))
    batch = clips_of(20)
    for step in range(3):
        assert given_frames(stage, batch, step)[2].tolist() == [2] * 20
    x0, layout = stage.latents(batch.videos, batch.images, "latents")
    condition = stage.validation_condition(batch, x0, layout, PerSampleRNG(0, 0, batch.global_batch_index))
    assert stage.frame_weight(batch, condition).tolist() == [0, 0, 1] * 20 + [1, 1], "and validated so"
    assert stage.sampling_config()["diffusion"]["context_frames"] == [2]
    sometimes = BaseStage(replace(config, frame_prediction=0.9), sgd)
    assert sometimes.validation_condition(batch, x0, layout, PerSampleRNG(0, 0, batch.global_batch_index)).context_latents is None
    assert sometimes.sampling_config()["diffusion"]["context_frames"] == [1, 2]


def test_base_stage_without_frame_prediction_has_no_context_channels() -> None:
    stage = BaseStage(DenoiserConfig(**SMALL), sgd)  # type: ignore[arg-type]
    batch = clips_of(3)
    x0, layout = stage.latents(batch.videos, batch.images, "latents")
    assert stage.condition(batch, x0, layout, PerSampleRNG(0, 0, batch.global_batch_index)).context_latents is None
    assert stage.denoiser.config.in_channels == 2 * 8, "noisy latent and self-conditioning"


def test_guidance_of_a_stage_is_used_by_previews_and_stored_in_its_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Guidance] = []

    def spy(denoise: Denoise, guidance: Guidance, *more: object) -> Denoise:
        asked.append(guidance)
        return denoise

    monkeypatch.setattr("walt_pl.sampling.stage_sampler.classifier_free_guidance", spy)
    diffusion = DiffusionConfig(guidance=Guidance(3.0, rescale=0.5))
    stage = BaseStage(DenoiserConfig(**SMALL), sgd, diffusion=diffusion, preview_steps=1)  # type: ignore[arg-type]
    stage._vae = [VAE(VAEConfig(8, (1, 1, 1), ((2, 2, 2), (2, 2, 2)), (0, 1, 1), 0, norm="layer"))]
    stage.preview_samples(latent_batch())
    assert asked == [DiffusionConfig.from_plain(stage.sampling_config()["diffusion"]).guidance] == [Guidance(3.0, rescale=0.5)]


def test_guidance_is_refused_where_context_is_always_given() -> None:
    config = DenoiserConfig(**SMALL, frame_prediction=1.0)  # type: ignore[arg-type]
    said = r"model.diffusion.guidance.scale is 2, but with model.denoiser.frame_prediction 1 .*: set the scale to 1"
    with pytest.raises(ValueError, match=said):
        BaseStage(config, sgd, diffusion=DiffusionConfig(guidance=Guidance(2.0)))


def test_super_resolution_noises_low_res_at_its_noise_aug_level() -> None:
    stage = SuperResolutionStage(DenoiserConfig(**SMALL, super_resolution=True), sgd)  # type: ignore[arg-type]
    batch = latent_batch()
    x0, layout = stage.latents(batch.videos, batch.images, "latents")
    condition = stage.condition(batch, x0, layout, PerSampleRNG(0, 0, batch.global_batch_index))
    assert (
        condition.low_res is not None
        and condition.noise_aug_level is not None
        and batch.low_res_videos is not None
        and batch.low_res_images is not None
    )
    assert condition.low_res.shape == (9, 8, 2, 2)
    assert int(condition.noise_aug_level.min()) >= 0 and int(condition.noise_aug_level.max()) < 350
    clean = layout.join(batch.low_res_videos, batch.low_res_images)
    a, s = alpha_sigma_like(stage.path, layout.per_frame(condition.noise_aug_level), clean)
    noise = (condition.low_res - a * clean) / s
    assert 0.8 < float(noise.std()) < 1.2


def test_training_draws_of_a_sample_do_not_depend_on_its_rank() -> None:
    stage = BaseStage(DenoiserConfig(**SMALL), sgd)  # type: ignore[arg-type]
    batch = latent_batch(videos=4, images=0)
    x0, layout = stage.latents(batch.videos, batch.images, "latents")
    whole = stage.draws(x0, layout, PerSampleRNG(1, 7, batch.global_batch_index))
    half = stage.draws(x0[6:], FrameLayout(2, 3, 0), PerSampleRNG(1, 7, batch.global_batch_index[2:]))
    assert torch.equal(whole.timestep[2:], half.timestep)
    assert torch.equal(whole.noise[6:], half.noise)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_training_draws_are_independent_of_the_default_dtype(default: torch.dtype, default_dtype: SetDtype) -> None:
    """Latents by their statistics, levels, noise, given pasts and the noised smaller latent."""
    denoiser = DenoiserConfig(**SMALL, frame_prediction=0.5, super_resolution=True)  # type: ignore[arg-type]
    stage, batch, steps = SuperResolutionStage(denoiser, sgd), latent_batch(), []
    for dtype in (torch.float32, default):
        default_dtype(dtype)
        stage._normalizer = LatentNormalizer.from_card({"latents": {"mean": [0.3] * 8, "std": [1.7] * 8}})
        rng = PerSampleRNG(0, 1, batch.global_batch_index)
        x0, layout = stage.latents(batch.videos, batch.images, "latents")
        condition, draws = stage.condition(batch, x0, layout, rng), stage.draws(x0, layout, rng)
        found = [
            x0,
            condition.condition_kept,
            condition.context_latents,
            condition.context_mask,
            condition.low_res,
            condition.noise_aug_level,
        ]
        steps.append([*found, draws.timestep, draws.noise, draws.self_condition])
    for wanted, got in zip(*steps, strict=True):
        assert wanted is not None and got is not None
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    assert steps[1][0].dtype == steps[1][-2].dtype == torch.float32


def test_first_videos_leaves_out_the_images() -> None:
    batch = first_videos(latent_batch(), 1)
    assert len(batch.videos) == 1 and len(batch.images) == 0 and len(batch.captions) == len(batch.global_batch_index) == 1


def test_latent_statistics_are_those_of_all_training_latents_of_all_ranks() -> None:
    parts = [torch.randn(2, 2, 3, 4, 4) * 3 + 1, torch.randn(5, 2, 1, 4, 4)]
    measured = latent_statistics(latent_sums(parts[:1], 2) + latent_sums(parts[1:], 2) + latent_sums([], 2))
    with pytest.raises(ValueError, match="no clip that can be read"):
        latent_statistics(latent_sums([], 2))
    flat = torch.cat([z.movedim(1, 0).flatten(1) for z in parts], dim=1)
    torch.testing.assert_close(torch.tensor(measured["mean"]), flat.mean(dim=1))
    torch.testing.assert_close(torch.tensor(measured["std"]), flat.std(dim=1, correction=0))


@pytest.mark.parametrize(
    "build, named",
    [
        (lambda: BaseStage(DenoiserConfig(**SMALL, text_width=8), sgd, text=SmallTextConfig(width=16)), "text_width"),  # type: ignore[arg-type]
        (lambda: SuperResolutionStage(DenoiserConfig(**SMALL), sgd), "super_resolution"),  # type: ignore[arg-type]
        (lambda: DiffusionConfig(context_frames=(1, 3)), "context_frames"),
        (lambda: DiffusionConfig(noise_aug_level=1000), "noise_aug_level"),
        (lambda: DiffusionConfig(noise_aug_max=0), "noise_aug_max"),
        (lambda: DenoiserConfig(**SMALL, frame_prediction=1.5), "frame_prediction"),  # type: ignore[arg-type]
        (lambda: DenoiserConfig(**SMALL, self_conditioning=True), "self_conditioning"),  # type: ignore[arg-type]
    ],
)
def test_stage_refuses_configs_that_contradict_each_other(build: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = learning_rate(optimizer, warmup_steps=4, total=10, lr_schedule="cosine")
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="max_steps"):
        learning_rate(optimizer, warmup_steps=4, total=4, lr_schedule="cosine")


def test_vae_validation_batch_of_unreadable_clips_has_no_weight() -> None:
    """And its value is logged all the same: ranks add up their values in the order in which they are logged."""
    vae = VAEConfig(
        width=8,
        channel_multipliers=(1, 1),
        strides=((2, 2, 2),),
        num_res_blocks=(0, 1),
        num_middle_blocks=0,
        norm="layer",
        latent_channels=2,
    )
    torch.manual_seed(0)
    stage = VAEStage(vae, sgd, adversarial_weight=0.0)

    def batch(weight: float, images: int = 1) -> JointBatch:
        global_batch_index = torch.arange(2 + images)
        names = [""] * len(global_batch_index)
        weights = torch.tensor([weight, weight, *[1.0] * images])
        clips, pictures = torch.rand(2, 3, 5, 8, 8) * weight, torch.rand(images, 3, 1, 8, 8)
        return JointBatch(clips, pictures, names, global_batch_index, weights, global_batch_index, None, None, "pixels", names)

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    fine = batch(1.0)

    def validated(*batches: JointBatch) -> dict[str, float]:
        (found,) = trainer.validate(stage, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
        return dict(found)

    assert validated(batch(0.0), fine)["val/psnr_video"] == pytest.approx(validated(fine)["val/psnr_video"])
    assert list(validated(batch(0.0))) == list(validated(fine)) == ["val/psnr_video", "val/psnr_image"]


def test_measured_clips_capture_no_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch of a measurement would capture one of its own."""
    made: list[StageSampler] = []
    monkeypatch.setattr(StageSampler, "sample", lambda self, *_: made.append(self) or torch.zeros(2, 8, 3, 4, 4))  # type: ignore[func-returns-value]
    stage = SuperResolutionStage(DenoiserConfig(**SMALL, super_resolution=True), sgd, preview_steps=2).eval()  # type: ignore[arg-type]
    stage._vae = [SimpleNamespace(to=lambda _: SimpleNamespace(decode=lambda z: z))]  # type: ignore[list-item]
    stage.measured_clips(latent_batch(videos=2, images=0))
    assert [sampler.use_graphs for sampler in made] == [False]


def test_measured_clips_depend_on_the_seed_and_the_place_of_each_clip_alone() -> None:
    """So they do not depend on the ranks that share them, nor on the random state of the process."""
    stage = SuperResolutionStage(DenoiserConfig(**SMALL, super_resolution=True), sgd, preview_steps=2).eval()  # type: ignore[arg-type]
    small = {"channel_multipliers": (1, 1), "strides": ((2, 2, 2),), "num_res_blocks": (0, 1), "num_middle_blocks": 0, "norm": "layer"}
    stage._vae = [VAE(VAEConfig(width=8, **small)).eval()]  # type: ignore[arg-type]
    batch = latent_batch(videos=2, images=0)
    with torch.no_grad():
        state = torch.get_rng_state()
        together = stage.measured_clips(batch)
        assert torch.equal(torch.get_rng_state(), state)
        first = stage.measured_clips(first_videos(batch, 1))
        stage.seed = 1
        other = stage.measured_clips(batch)
    assert together.shape[:2] == (2, 3) and float(together.abs().max()) <= 1
    torch.testing.assert_close(first, together[:1])
    assert not torch.allclose(other, together, atol=1e-3) and not torch.allclose(together[0], together[1], atol=1e-3)
    assert stage.measured_config() == {"clips": "samples", "steps": 2, "guidance": stage.diffusion.guidance.scale, "seed": 1}
