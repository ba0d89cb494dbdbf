"""A training step of the base against the formula, with a network whose error is known by hand."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from stages.latent_diffusion import LatentDiffusion
from tests.helpers.known_network import (
    CONFIG,
    ERROR,
    LAYOUT,
    OWNER,
    KnownNetwork,
    build_stage,
    joint_batch,
    take_network,
    train_without_loop,
)
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.path import alpha_sigma_like


def with_network(batch: JointBatch, error: Tensor | None = None, **settings: Any) -> tuple[LatentDiffusion, KnownNetwork]:
    """Build a stage whose network leads to the latents of ``batch``."""
    stage = build_stage(LatentDiffusion, CONFIG, **settings)
    return stage, take_network(stage, batch, error)


def weights_by_hand(network: KnownNetwork, batch: JointBatch) -> Tensor:
    """Return 1 for each frame that counts: the clip was read, and the frame was not given to the network."""
    condition = network.calls[-1].condition
    given = torch.zeros(LAYOUT.total_frames) if condition.context_mask is None else condition.context_mask[:, 0, 0, 0]
    return (1 - given) * batch.weight[OWNER]


@pytest.mark.parametrize("step", range(6))
def test_training_step_loss_is_the_mean_over_frames_that_count(step: int) -> None:
    batch = joint_batch(weight=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
    stage, network = with_network(batch, ERROR, frame_prediction=0.6)
    logged = train_without_loop(stage, total_batch_idx=step)
    loss = stage.training_step(batch, 0)
    weight = weights_by_hand(network, batch)
    assert 2 <= weight.sum() <= 7, "four frames of the lost clip and the lost image never count"
    by_hand = float((ERROR.square() * weight).sum() / weight.sum())
    assert float(loss) == pytest.approx(by_hand, rel=1e-4)
    assert logged["train/loss"].value == float(loss) and logged["train/loss"].options["sync_dist"]
    video, image = ERROR[:9].square() * weight[:9], ERROR[9:].square() * weight[9:]
    assert logged["train/loss_video"].value == pytest.approx(float(video.sum() / weight[:9].sum()), rel=1e-4)
    assert logged["train/loss_image"].value == pytest.approx(float(image.sum() / weight[9:].sum()), rel=1e-4)
    assert logged["train/loss_video"].options["batch_size"] == 9 and logged["train/loss_image"].options["batch_size"] == 2


def test_training_step_loss_without_context_frames_is_the_plain_mean() -> None:
    batch = joint_batch()
    stage, _ = with_network(batch, ERROR, frame_prediction=0.0)
    train_without_loop(stage)
    assert float(stage.training_step(batch, 0)) == pytest.approx(float(ERROR.square().mean()), rel=1e-4)


def test_training_step_loss_of_a_perfect_denoiser_is_zero() -> None:
    batch = joint_batch()
    for step in range(10):
        stage, _ = with_network(batch)
        train_without_loop(stage, step)
        assert float(stage.training_step(batch, 0)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("rescaled", [True, False])
def test_training_step_noise_follows_the_configured_noise_schedule(rescaled: bool) -> None:
    """However large the clean latents are, the same noise is left without them."""
    found = []
    for scale in (1, 1000):
        batch = joint_batch()
        batch.videos, batch.images = scale * batch.videos, scale * batch.images
        stage, network = with_network(batch, zero_terminal_snr=rescaled)
        train_without_loop(stage)
        stage.training_step(batch, 0)
        found.append(network.eps(network.calls[-1]))
    torch.testing.assert_close(found[0], found[1], atol=0.05, rtol=0)


def test_training_step_logs_losses_of_videos_and_images_that_are_in_the_batch() -> None:
    for layout, name in ((FrameLayout(2, 3, 0), "train/loss_video"), (FrameLayout(0, 3, 2), "train/loss_image")):
        batch = joint_batch(layout)
        stage, _ = with_network(batch)
        logged = train_without_loop(stage)
        stage.training_step(batch, 0)
        assert set(logged) == {"train/loss", name}


def test_training_step_of_unreadable_clips_alone_is_zero_and_logs_every_loss() -> None:
    """Ranks add up their values in the order in which they log them."""
    batch = joint_batch(weight=torch.zeros(5))
    stage, _ = with_network(batch, ERROR)
    logged = train_without_loop(stage)
    assert float(stage.training_step(batch, 0)) == 0
    assert {name: line.value for name, line in logged.items()} == {"train/loss": 0, "train/loss_video": 0, "train/loss_image": 0}


def test_training_step_losses_of_two_ranks_average_to_that_of_the_whole_batch() -> None:
    """Also where the ranks count unlike numbers of frames, and where one frame is all that counts."""
    for weights in ([1.0, 0, 1, 1, 0], [0.0, 0, 0, 1, 0]):
        whole = joint_batch(weight=torch.tensor(weights))
        empty = joint_batch(weight=torch.zeros(5))
        parts, count = [], 6.0 + (weights[0] - 1) * 6 + weights[3]
        for batch in (whole, empty):
            stage, _ = with_network(batch, ERROR, frame_prediction=0.0)

            def reduced(value: Tensor, reduce_op: str, count: float = count) -> Tensor:
                assert reduce_op == "mean"
                return torch.tensor(count / 2)

            train_without_loop(stage, world_size=2, reduced=reduced)
            parts.append(float(stage.training_step(batch, 0)))
        weight = whole.weight[OWNER]
        assert float(weight.sum()) == count
        assert sum(parts) / 2 == pytest.approx(float((ERROR.square() * weight).sum() / count), rel=1e-4)


def test_training_step_asks_other_ranks_how_many_frames_count() -> None:
    batch = joint_batch(weight=torch.tensor([1.0, 0, 1, 1, 0]))
    stage, _ = with_network(batch, ERROR, frame_prediction=0.0)
    asked: list[float] = []
    train_without_loop(stage, world_size=2, reduced=lambda value, reduce_op: asked.append(float(value)) or value)
    stage.training_step(batch, 0)
    assert asked == [7.0]


def noise_of(total_batch_idx: int, batch_idx: int = 0, seed: int = 0, global_batch_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return timesteps and noise of one training step."""
    batch = joint_batch()
    batch.global_batch_index = batch.global_batch_index if global_batch_index is None else global_batch_index
    stage, network = with_network(batch, seed=seed)
    train_without_loop(stage, total_batch_idx)
    stage.training_step(batch, batch_idx)
    return network.calls[-1].timestep, network.eps(network.calls[-1])


def test_training_step_draws_depend_on_seed_step_and_global_batch_index() -> None:
    step, eps = noise_of(7)
    torch.manual_seed(99)
    for again in (noise_of(7, batch_idx=3), noise_of(7, batch_idx=0)):
        assert torch.equal(again[0], step) and torch.equal(again[1], eps), "neither the batch of the epoch nor torch's own generator"
    for other in (noise_of(8), noise_of(7, seed=1), noise_of(7, global_batch_index=torch.arange(5) + 5)):
        assert not torch.equal(other[0], step) and not torch.allclose(other[1], eps, atol=0.1)
    moved = noise_of(7, global_batch_index=torch.tensor([1, 0, 2, 4, 3]))
    assert torch.equal(moved[0], step[[1, 0, 2, 4, 3]])
    torch.testing.assert_close(moved[1], eps[[3, 4, 5, 0, 1, 2, 6, 7, 8, 10, 9]], atol=1e-3, rtol=1e-3)


def test_training_step_shows_context_frames_to_the_self_conditioning_pass() -> None:
    """The estimate is x_0 as the first pass has it: off by sigma times its error, and the given frames themselves where given."""
    batch = joint_batch()
    stage, network = with_network(batch, ERROR, frame_prediction=1.0, self_conditioning=1.0)
    train_without_loop(stage)
    stage.training_step(batch, 0)
    first, second = network.calls
    given = second.condition.context_mask[:, 0, 0, 0].bool()  # type: ignore[index]
    assert first.estimate is None and second.estimate is not None and 3 <= given.sum() <= 6
    assert torch.equal(second.estimate[given], network.x0[given])
    _, sigma = alpha_sigma_like(network.schedule, LAYOUT.per_frame(second.timestep), second.x)
    torch.testing.assert_close(second.estimate[~given], (network.x0 - sigma * ERROR[:, None, None, None])[~given], atol=1e-3, rtol=1e-3)


def test_training_step_without_self_conditioning_runs_the_network_once() -> None:
    batch = joint_batch()
    stage = build_stage(LatentDiffusion, self_conditioning=0.0)
    network = take_network(stage, batch)
    train_without_loop(stage)
    stage.training_step(batch, 0)
    assert len(network.calls) == 1 and network.calls[0].estimate is None


@pytest.fixture(scope="module")
def drawn() -> KnownNetwork:
    """The calls of a training step on 10,000 videos and 10,000 images of one pixel, 0 everywhere, with a stage's own defaults.

    The network is wrong everywhere, so that no estimate is 0 but those of samples that are not selected.
    """
    batch = joint_batch(FrameLayout(10_000, 3, 10_000), side=1)
    batch.videos.zero_(), batch.images.zero_()
    stage, network = with_network(batch, torch.ones(40_000))
    train_without_loop(stage)
    stage.training_step(batch, 0)
    return network


def self_conditioned(network: KnownNetwork) -> Tensor:
    """Return the samples that got an estimate, bool [s]."""
    call = network.calls[-1]
    assert call.estimate is not None
    return call.condition.layout.per_sample(call.estimate.abs().sum(dim=(1, 2, 3))) > 0


def test_training_step_timesteps_are_uniform_from_0_to_999(drawn: KnownNetwork) -> None:
    step = drawn.calls[-1].timestep
    assert step.dtype == torch.int64 and int(step.min()) == 0 and int(step.max()) == 999
    for kind in (step[:10_000], step[10_000:], step):
        counts = torch.bincount(kind, minlength=1000)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_training_step_noise_is_standard_normal(drawn: KnownNetwork) -> None:
    eps = drawn.eps(drawn.calls[-1])
    for part in (eps[:30_000], eps[30_000:]):
        assert stats.kstest(part.flatten().numpy(), "norm").pvalue > 1e-3
        assert float(part.std()) == pytest.approx(1, abs=0.02)
    frames = eps[:30_000].view(10_000, 3, 2)
    corners = torch.corrcoef(frames.flatten(1).T)
    assert float((corners - torch.eye(6)).abs().max()) < 0.05, "frames and channels have noise of their own"


def test_training_step_drops_the_condition_of_one_sample_in_ten(drawn: KnownNetwork) -> None:
    condition_kept = drawn.calls[-1].condition.condition_kept
    for kind in (condition_kept[:10_000], condition_kept[10_000:]):
        assert float(kind.float().mean()) == pytest.approx(0.9, abs=0.01)


def test_training_step_runs_the_self_conditioning_pass_for_nine_samples_in_ten(drawn: KnownNetwork) -> None:
    rows = self_conditioned(drawn)
    for kind in (rows[:10_000], rows[10_000:]):
        assert float(kind.float().mean()) == pytest.approx(0.9, abs=0.01)


def test_training_step_gives_one_video_in_ten_one_or_two_context_frames(drawn: KnownNetwork) -> None:
    mask = drawn.calls[-1].condition.context_mask
    assert mask is not None and not mask[30_000:].any()
    count = mask[:30_000].view(10_000, 3).sum(dim=1)
    shares = torch.bincount(count.long(), minlength=4) / 10_000
    assert shares.tolist() == pytest.approx([0.9, 0.05, 0.05, 0], abs=0.01)


def test_training_step_draws_are_independent_of_each_other(drawn: KnownNetwork) -> None:
    second = drawn.calls[-1]
    condition = second.condition
    assert condition.context_mask is not None
    context_latents = condition.context_mask[:30_000].view(10_000, 3)[:, 0].float()
    drawn_of = torch.stack(
        [
            second.timestep[:10_000].float(),
            condition.condition_kept[:10_000].float(),
            self_conditioned(drawn)[:10_000].float(),
            context_latents,
            drawn.eps(second)[:30_000].view(10_000, 3, 2)[:, 0, 0],
        ]
    )
    assert float((torch.corrcoef(drawn_of) - torch.eye(5)).abs().max()) < 0.05
