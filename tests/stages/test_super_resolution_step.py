"""The low-resolution latent of a super-resolution stage, seen from a network whose error is known by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from stages.super_resolution import SuperResolutionStage
from tests.helpers.known_network import (
    CONFIG,
    ERROR,
    LAYOUT,
    Call,
    KnownNetwork,
    build_stage,
    joint_batch,
    sgd,
    take_network,
    train_without_loop,
)
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.path import alpha_sigma_like
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.latent_normalizer import LatentNormalizer

LARGER = replace(CONFIG, super_resolution=True)
SCALE = LatentNormalizer(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]))


def stage_of(batch: JointBatch, config: DenoiserConfig = LARGER, **settings: Any) -> tuple[SuperResolutionStage, KnownNetwork]:
    stage = build_stage(SuperResolutionStage, config, **settings)
    stage._normalizer = SCALE
    return stage, take_network(stage, batch, ERROR if len(batch.global_batch_index) == LAYOUT.num_samples else None)


def low_eps(network: KnownNetwork, call: Call, batch: JointBatch) -> Tensor:
    """Return the noise in the low-resolution latents of a call on the whole batch, at the level that the network was given."""
    assert call.condition.low_res is not None and call.condition.noise_aug_level is not None
    assert batch.low_res_videos is not None and batch.low_res_images is not None
    layout = call.condition.layout
    clean = SCALE.normalize(layout.join(batch.low_res_videos, batch.low_res_images))
    alpha, sigma = alpha_sigma_like(network.schedule, layout.per_frame(call.condition.noise_aug_level), clean)
    return (call.condition.low_res - alpha * clean) / sigma


@pytest.fixture(scope="module")
def drawn() -> tuple[KnownNetwork, JointBatch]:
    """The calls of a training step on 10,000 videos and 10,000 images of 2 x 2 from 1 x 1 latents, with a stage's own defaults."""
    batch = joint_batch(FrameLayout(10_000, 3, 10_000), side=2)
    stage, network = stage_of(batch, replace(LARGER, size=(3, 2, 2), window_size=(3, 1, 1)))
    train_without_loop(stage)
    stage.training_step(batch, 0)
    return network, batch


def test_super_resolution_noise_aug_level_is_uniform_below_350(drawn: tuple[KnownNetwork, JointBatch]) -> None:
    level = drawn[0].calls[-1].condition.noise_aug_level
    assert level is not None and level.dtype == torch.int64 and int(level.min()) == 0 and int(level.max()) == 349
    for kind in (level[:10_000], level[10_000:]):
        assert stats.chisquare(torch.bincount(kind, minlength=350).numpy()).pvalue > 1e-3


def test_super_resolution_low_res_is_noised_at_the_level_the_network_sees(drawn: tuple[KnownNetwork, JointBatch]) -> None:
    network, batch = drawn
    call = network.calls[-1]
    eps, level = low_eps(network, call, batch), call.condition.layout.per_frame(call.condition.noise_aug_level)  # type: ignore[arg-type]
    for rows in (level < 20, (level > 20) & (level < 200), level > 300):
        assert stats.kstest(eps[rows].flatten().numpy(), "norm").pvalue > 1e-3
        assert float(eps[rows].std()) == pytest.approx(1, abs=0.05)


def test_super_resolution_draws_are_independent_of_each_other(drawn: tuple[KnownNetwork, JointBatch]) -> None:
    network, batch = drawn
    call = network.calls[-1]
    assert call.condition.noise_aug_level is not None
    values = torch.stack(
        [
            call.condition.noise_aug_level[10_000:].float(),
            call.timestep[10_000:].float(),
            call.condition.condition_kept[10_000:].float(),
            low_eps(network, call, batch)[30_000:, 0, 0, 0],
            network.eps(call)[30_000:, 0, 0, 0],
        ]
    )
    assert float((torch.corrcoef(values) - torch.eye(5)).abs().max()) < 0.05


def test_super_resolution_training_step_loss_is_the_mean_over_frames_that_count() -> None:
    batch = joint_batch(weight=torch.tensor([1.0, 0, 1, 1, 0]))
    stage, _ = stage_of(batch, frame_prediction=0.0)
    train_without_loop(stage)
    weight = torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0])
    by_hand = float((ERROR.square() * weight).sum() / weight.sum())
    assert float(stage.training_step(batch, 0)) == pytest.approx(by_hand, rel=1e-4)


def test_super_resolution_self_conditioning_pass_sees_the_same_low_res() -> None:
    batch = joint_batch()
    stage, network = stage_of(batch, self_conditioning=1.0)
    train_without_loop(stage)
    stage.training_step(batch, 0)
    first, second = network.calls
    for name in ("low_res", "noise_aug_level", "condition_kept"):
        assert torch.equal(getattr(first.condition, name), getattr(second.condition, name)), name


@pytest.mark.parametrize("level", [50, 7])
def test_super_resolution_validates_at_the_noise_aug_level_of_sampling(level: int) -> None:
    batch = joint_batch()
    stage, network = stage_of(batch, noise_aug_level=level)
    train_without_loop(stage)
    stage.validation_step(batch, 0)
    assert len(network.calls) == 10
    for call in network.calls:
        assert call.condition.noise_aug_level is not None and call.condition.noise_aug_level.tolist() == [level] * 5
        assert float(low_eps(network, call, batch).std()) == pytest.approx(1, abs=0.25)
        assert call.condition.context_latents is None and bool(call.condition.condition_kept.all())
    assert stage.sampling_config()["diffusion"]["noise_aug_level"] == level


def test_super_resolution_noise_aug_level_default_is_50() -> None:
    assert SuperResolutionStage(LARGER, sgd).sampling_config()["diffusion"]["noise_aug_level"] == 50


def test_super_resolution_keeps_context_and_drops_captions_as_the_base_does() -> None:
    batch = joint_batch()
    stage, network = stage_of(batch, condition_dropout=1.0, frame_prediction=1.0)
    train_without_loop(stage)
    stage.training_step(batch, 0)
    condition = network.calls[-1].condition
    assert (
        not condition.condition_kept.any()
        and condition.context_mask is not None
        and condition.context_mask.any()
        and condition.low_res is not None
    )


def test_super_resolution_low_res_noise_depends_on_seed_step_and_global_batch_index() -> None:
    def low_res(total_batch_idx: int = 7, seed: int = 0, global_batch_index: list[int] | None = None) -> Tensor:
        batch = joint_batch()
        batch.global_batch_index = torch.tensor([0, 1, 2, 3, 4] if global_batch_index is None else global_batch_index)
        stage, network = stage_of(batch, seed=seed)
        train_without_loop(stage, total_batch_idx)
        stage.training_step(batch, 0)
        return low_eps(network, network.calls[-1], batch)

    eps = low_res()
    torch.manual_seed(99)
    assert torch.equal(low_res(), eps)
    for other in (low_res(total_batch_idx=8), low_res(seed=1), low_res(global_batch_index=[5, 6, 7, 8, 9])):
        assert not torch.allclose(other, eps, atol=0.1)
    torch.testing.assert_close(low_res(global_batch_index=[0, 1, 2, 4, 3])[[10, 9]], eps[[9, 10]], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rescaled", [True, False])
def test_super_resolution_low_res_noise_follows_the_configured_noise_schedule(rescaled: bool) -> None:
    """However large the clean latents are, the same noise is left without them."""
    found = []
    for scale in (1, 1000):
        batch = joint_batch()
        assert batch.low_res_videos is not None and batch.low_res_images is not None
        batch.low_res_videos, batch.low_res_images = scale * batch.low_res_videos, scale * batch.low_res_images
        stage, network = stage_of(batch, zero_terminal_snr=rescaled)
        train_without_loop(stage)
        stage.training_step(batch, 0)
        found.append(low_eps(network, network.calls[-1], batch))
    torch.testing.assert_close(found[0], found[1], atol=0.05, rtol=0)


@pytest.mark.parametrize("change, said", [({"low_res_videos": None}, "low_res_size is not set"), ({}, "set it to half of data.size")])
def test_super_resolution_refuses_low_res_that_is_not_half_the_size(change: dict[str, Any], said: str) -> None:
    batch = joint_batch()
    stage, _ = stage_of(batch)
    wrong = replace(batch, **(change or {"low_res_videos": batch.videos, "low_res_images": batch.images}))
    train_without_loop(stage)
    with pytest.raises(ValueError, match=said):
        stage.training_step(wrong, 0)


class Cells(torch.nn.Module):
    """Decodes a latent to three channels of its own size, so that pixels are latents."""

    def decode(self, z: Tensor) -> Tensor:
        return z[:, [0, 1, 0]] / 10


def test_super_resolution_previews_show_low_res_sample_and_original() -> None:
    batch = joint_batch()
    stage, _ = stage_of(batch, preview_steps=2)
    stage._vae = [Cells()]  # type: ignore[list-item]
    videos, layout = stage.latents(batch.videos, batch.images[:0], "latents")
    stage.denoiser = KnownNetwork(LARGER, videos, layout)  # type: ignore[assignment]
    rows, captions, columns = stage.previews(batch)["super_resolution"]
    assert captions == [word for sample in range(3) for word in ("low", f"circle {sample}", "original")] and columns == 3
    assert batch.low_res_videos is not None
    low_res, sample, original = rows.view(3, 3, *rows.shape[1:]).unbind(1)
    want = Cells().decode(batch.videos).clamp(-1, 1)
    torch.testing.assert_close(original, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sample, want, atol=2e-3, rtol=2e-3)
    shown = Cells().decode(batch.low_res_videos).clamp(-1, 1)
    torch.testing.assert_close(low_res[..., ::2, ::2], shown, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(low_res[..., 1::2, 1::2], shown, atol=1e-4, rtol=1e-4)
