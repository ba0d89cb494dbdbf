"""The loss of a training step: velocity, self-conditioning where drawn, and frames that do not count."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from stages.latent_diffusion import LatentDiffusion
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.objective import TrainingDraws, denoising_error, self_conditioning_pass
from walt_pl.diffusion.path import add_noise
from walt_pl.diffusion.schedule import NoiseSchedule
from walt_pl.models.denoiser import Denoiser, DenoiserConfig

LAYOUT = FrameLayout(videos=2, frames=3, images=2)
SHAPE = (LAYOUT.total_frames, 2, 4, 4)
SCHEDULE = NoiseSchedule()
STEP = torch.tensor([999, 400, 20, 700])
NOBODY = torch.zeros(4, dtype=torch.bool)


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def condition() -> Condition:
    return Condition(LAYOUT, torch.ones(4, dtype=torch.bool), labels=torch.arange(4))


def draws(self_condition: Tensor | None = None) -> TrainingDraws:
    return TrainingDraws(STEP, noise(1), self_condition)


@dataclass
class Call:
    x: Tensor
    timestep: Tensor
    condition: Condition
    estimate: Tensor | None


@dataclass
class FakeDenoiser:
    """v = gain * x_t + share * estimate, and a record of what it was asked."""

    gain: Tensor = field(default_factory=lambda: torch.tensor(0.5))
    share: float = 0.25
    calls: list[Call] = field(default_factory=list)

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        self.calls.append(Call(x, timestep, condition, estimate))
        return self.gain * x + (0 if estimate is None else self.share * estimate)


def test_denoising_error_is_the_squared_velocity_error_of_each_frame() -> None:
    x0, eps = noise(0), noise(1)
    error = denoising_error(FakeDenoiser(torch.tensor(0.0)), SCHEDULE, x0, condition(), draws())
    assert error.shape == (LAYOUT.total_frames,) and error.dtype == torch.float32
    for frame, sample in enumerate([0, 0, 0, 1, 1, 1, 2, 3]):
        g = SCHEDULE.alphas_cumprod[STEP[sample]]
        v = g.sqrt() * eps[frame] - (1 - g).sqrt() * x0[frame]
        assert float(error[frame]) == pytest.approx(float(v.square().mean()), rel=1e-5)


def test_denoising_error_of_a_perfect_denoiser_is_zero() -> None:
    x0, eps = noise(0), noise(1)

    def perfect(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        return SCHEDULE.target(x0, eps, condition.layout.per_frame(timestep))

    assert torch.equal(denoising_error(perfect, SCHEDULE, x0, condition(), draws()), torch.zeros(LAYOUT.total_frames))


def test_denoising_error_passes_noisy_latents_and_timesteps_to_the_network() -> None:
    fake = FakeDenoiser()
    denoising_error(fake, SCHEDULE, noise(0), condition(), draws())
    (call,) = fake.calls
    assert torch.equal(call.timestep, STEP) and call.estimate is None
    assert torch.equal(call.x, add_noise(SCHEDULE, noise(0), noise(1), LAYOUT.per_frame(STEP)))
    assert torch.equal(call.x[:3], noise(1)[:3]), "level 999 is pure noise"


@pytest.mark.parametrize("drawn", [[True, False, True, False], [False, False, False, True], [True] * 4, [False] * 4])
def test_self_conditioning_pass_runs_all_samples_and_keeps_the_selected_estimates(drawn: list[bool]) -> None:
    """Its shapes do not depend on the draws: nothing is compiled anew, and all ranks of ZeRO 3 gather the same weights."""
    rows = torch.tensor(drawn)
    frames = LAYOUT.per_frame(rows)
    fake = FakeDenoiser()
    denoising_error(fake, SCHEDULE, noise(0), condition(), draws(rows))
    first, second = fake.calls
    xt = second.x
    # The first pass: everything, at the same level, with zeros as estimate.
    assert first.estimate is None and torch.equal(first.x, xt) and torch.equal(first.timestep, STEP)
    assert first.condition.layout == LAYOUT
    # The second: the clean latent of the first where it was drawn and zeros elsewhere.
    assert second.condition.layout == LAYOUT and second.estimate is not None
    assert torch.equal(second.estimate[~frames], torch.zeros_like(xt[~frames]))
    clean = SCHEDULE.predict_x0(xt[frames], 0.5 * xt[frames], LAYOUT.per_frame(STEP)[frames])
    assert torch.equal(second.estimate[frames], clean)
    assert rows.tolist() == drawn, "the draws themselves stay as they are"


def test_self_conditioning_pass_gives_the_estimates_of_a_pass_of_the_selected_samples_alone() -> None:
    denoiser = Denoiser(DenoiserConfig(8, 2, num_heads=2, latent_channels=2, size=(3, 4, 4), window_size=(3, 2, 2), num_classes=4))
    for number, parameter in enumerate(denoiser.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    rows = torch.tensor([False, True, True, False])
    frames = LAYOUT.per_frame(rows)
    estimate = self_conditioning_pass(denoiser, SCHEDULE, noise(5), condition(), draws(rows))
    few = Condition(FrameLayout(1, 3, 1), torch.ones(2, dtype=torch.bool), labels=torch.tensor([1, 2]))
    alone = self_conditioning_pass(
        denoiser, SCHEDULE, noise(5)[frames], few, TrainingDraws(STEP[rows], noise(1)[frames], torch.ones(2, dtype=torch.bool))
    )
    assert estimate is not None and alone is not None and not estimate[~frames].any()
    torch.testing.assert_close(estimate[frames], alone, atol=1e-5, rtol=1e-5)


def test_self_conditioning_pass_drops_infinite_estimates_of_samples_that_are_not_selected() -> None:
    estimate = self_conditioning_pass(FakeDenoiser(torch.tensor(torch.inf)), SCHEDULE, noise(5), condition(), draws(NOBODY))
    assert estimate is not None and not estimate.any()


def test_self_conditioning_pass_gives_context_frames_themselves() -> None:
    fake, context_latents = FakeDenoiser(), noise(7)
    given = condition().with_context(context_latents, torch.tensor([2, 1, 0, 0]))
    estimate = self_conditioning_pass(fake, SCHEDULE, noise(5), given, draws(torch.tensor([True, False, True, False])))
    assert estimate is not None
    assert torch.equal(estimate[:2], context_latents[:2]), "known, in a row that was drawn"
    assert not estimate[3:6].any(), "a row that was not drawn is zeros, as at the first step of sampling"
    assert not torch.equal(estimate[2], context_latents[2])


def test_self_conditioning_pass_is_skipped_without_self_conditioning() -> None:
    fake = FakeDenoiser()
    assert self_conditioning_pass(fake, SCHEDULE, noise(0), condition(), draws()) is None
    denoising_error(fake, SCHEDULE, noise(0), condition(), draws())
    assert len(fake.calls) == 1 and fake.calls[0].estimate is None


def test_self_conditioning_pass_has_no_gradient() -> None:
    gain = torch.tensor(0.5, requires_grad=True)
    fake = FakeDenoiser(gain)
    denoising_error(fake, SCHEDULE, noise(0), condition(), draws(~NOBODY)).sum().backward()
    estimate = fake.calls[1].estimate
    assert estimate is not None and not estimate.requires_grad
    assert gain.grad is not None
    xt, n = fake.calls[1].x, LAYOUT.per_frame(STEP)
    residual = 0.5 * xt + 0.25 * estimate - SCHEDULE.target(noise(0), noise(1), n)
    by_hand = (2 * residual * xt).mean(dim=(1, 2, 3)).sum()  # as if the estimate were a constant
    torch.testing.assert_close(gain.grad, by_hand)


@pytest.fixture(scope="module")
def stage() -> LatentDiffusion:
    tiny = DenoiserConfig(
        8,
        2,
        num_heads=2,
        latent_channels=2,
        size=(3, 4, 4),
        window_size=(3, 2, 2),
        num_classes=4,
        frame_prediction=0.1,
        self_conditioning=0,
    )
    return LatentDiffusion(tiny, lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def batch(weight: tuple[float, ...] = (1, 1, 1, 1)) -> JointBatch:
    videos, images = LAYOUT.split(noise(0))
    return JointBatch(
        videos=videos,
        images=images,
        captions=[""] * 4,
        labels=torch.arange(4),
        weight=torch.tensor(weight, dtype=torch.float32),
        global_batch_index=torch.arange(4),
        low_res_videos=None,
        low_res_images=None,
        space="latents",
        paths=[""] * 4,
    )


def test_frame_weight_of_context_frames_is_zero(stage: LatentDiffusion) -> None:
    given = condition().with_context(noise(0), torch.tensor([2, 1, 2, 1]))
    assert stage.frame_weight(batch(), given).tolist() == [0, 0, 1, 0, 1, 1, 1, 1]
    assert stage.frame_weight(batch(), condition()).tolist() == [1] * 8


def test_frame_weight_of_unreadable_samples_is_zero(stage: LatentDiffusion) -> None:
    given = condition().with_context(noise(0), torch.tensor([1, 1, 0, 0]))
    assert stage.frame_weight(batch((0, 1, 1, 0)), given).tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


def test_condition_with_context_is_clean_and_never_for_images() -> None:
    given = condition().with_context(noise(0), torch.tensor([1, 2, 2, 1]))
    assert given.context_latents is not None and given.context_mask is not None
    assert given.context_mask.shape == (8, 1, 4, 4)
    assert given.context_mask[:, 0, 0, 0].tolist() == [1, 0, 0, 1, 1, 0, 0, 0]
    assert torch.equal(given.context_latents, noise(0))
