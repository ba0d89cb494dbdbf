"""DDIM and guidance, against their equations and against diffusers."""

import math
from functools import partial
from itertools import count

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.helpers.environment import SetDtype
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.ddim import Guidance, classifier_free_guidance, ddim
from walt_pl.diffusion.objective import Denoise
from walt_pl.diffusion.path import ProbabilityPath, alpha_sigma_like, trailing_timesteps
from walt_pl.diffusion.schedule import NoiseSchedule

LAYOUT = FrameLayout(videos=2, frames=3, images=1)
SHAPE = (LAYOUT.total_frames, 2, 4, 4)
SCHEDULE = NoiseSchedule()
CONDITION = Condition(LAYOUT, torch.ones(3, dtype=torch.bool))


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
    """Something smooth that depends on the latent, the level and the condition."""
    n = condition.layout.per_frame(timestep)[:, None, None, None].float() / 1000
    known = condition.layout.per_frame(condition.condition_kept)[:, None, None, None].float()
    return torch.tanh(x.roll(1, dims=-1) * (0.3 + known) - n) + 0.1 * known


def perfect(x0: Tensor, path: ProbabilityPath = SCHEDULE) -> Denoise:
    """The denoiser of a data set whose only element is x0."""

    def denoise(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        n = condition.layout.per_frame(timestep)
        a, s = alpha_sigma_like(path, n, x)
        return path.target(x0, (x - a * x0) / s, n)

    return denoise


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_independent_of_the_default_dtype(eta: float, default: torch.dtype, default_dtype: SetDtype) -> None:
    """The noise of every step (eta 1) included, which comes from torch's global generator here."""
    start, clips = noise(), []
    for dtype in (torch.float32, default):
        default_dtype(dtype)
        torch.manual_seed(0)
        clips.append(ddim(network, SCHEDULE, start, CONDITION, 5, eta=eta))
    assert clips[1].dtype == torch.float32 and torch.equal(*clips)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_with_a_perfect_denoiser_returns_the_clean_latent(steps: int) -> None:
    x0 = noise(1)
    torch.testing.assert_close(ddim(perfect(x0), SCHEDULE, noise(), CONDITION, steps), x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_ddim_equals_diffusers(steps: int, zero_terminal_snr: bool) -> None:
    reference = DDIMScheduler(
        1000,
        1e-4,
        0.02,
        "linear",
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    reference.set_timesteps(steps)
    x = noise()
    for n in reference.timesteps:
        x = reference.step(network(x, n.expand(3), CONDITION, None), n, x, eta=0.0).prev_sample
    ours = ddim(network, NoiseSchedule(zero_terminal_snr=zero_terminal_snr), noise(), CONDITION, steps)
    torch.testing.assert_close(ours, x, atol=2e-3, rtol=2e-3)


class StraightPath:
    """A path that the library does not have: rectified flow (Liu et al., arXiv 2209.03003), where alpha + sigma = 1."""

    num_timesteps = 1000

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (t.double() + 1) / self.num_timesteps
        return 1 - sigma, sigma

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - x0

    def predict_x0(self, xt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return xt - alpha_sigma_like(self, t, xt)[1] * output

    def predict_eps(self, xt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return xt + alpha_sigma_like(self, t, xt)[0] * output


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_of_another_path_equals_the_euler_steps_of_diffusers(steps: int, scale: float) -> None:
    path = StraightPath()
    reference = FlowMatchEulerDiscreteScheduler(1000)
    reference.set_timesteps(sigmas=[(n + 1) / 1000 for n in trailing_timesteps(path, steps)])
    x = noise()
    for t in reference.timesteps:
        n = torch.full((3,), round(float(t)) - 1)
        u, c = network(x, n, CONDITION.without_text(), None), network(x, n, CONDITION, None)
        x = reference.step(u + scale * (c - u), t, x).prev_sample
    denoise = classifier_free_guidance(network, Guidance(scale), path, Condition.without_text)
    torch.testing.assert_close(ddim(denoise, path, noise(), CONDITION, steps), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", [SCHEDULE, StraightPath()], ids=["schedule", "straight"])
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_ddim_ancestral_step_samples_the_posterior_of_its_path(path: ProbabilityPath, steps: int) -> None:
    """Bayes: the precisions of x_s given x_0 and of x_s given x_t add up; the path is x_t = ratio x_s + noise."""
    x0, added, inputs = noise(1), noise(5), []

    def record(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        inputs.append(x)
        return perfect(x0, path)(x, timestep, condition, estimate)

    ddim(record, path, noise(), CONDITION, steps, eta=1.0, fresh_noise=lambda: added)
    alphas, sigmas = (values.tolist() for values in path.alpha_sigma(torch.tensor(trailing_timesteps(path, steps))))
    for t in range(steps - 1):
        s, ratio = t + 1, alphas[t] / alphas[t + 1]
        forward = sigmas[t] ** 2 - (ratio * sigmas[s]) ** 2
        variance = 1 / (1 / sigmas[s] ** 2 + ratio**2 / forward)
        mean = variance * (alphas[s] * x0 / sigmas[s] ** 2 + ratio * inputs[t] / forward)
        torch.testing.assert_close(inputs[s], mean + math.sqrt(variance) * added, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("steps", [2, 5])
def test_ddim_ancestral_step_equals_diffusers(steps: int) -> None:
    """Eta 1: the noise that is added is known, and the last update adds none. The first of two steps starts at pure noise."""
    reference = DDIMScheduler(
        1000,
        1e-4,
        0.02,
        "linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
    )
    reference.set_timesteps(steps)
    added = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    x = noise()
    for n in reference.timesteps[:-1]:
        x = reference.step(network(x, n.expand(3), CONDITION, None), n, x, eta=1.0, variance_noise=added).prev_sample
    # diffusers adds noise after its last step, too; ours ends on the clean latent.
    last = int(reference.timesteps[-1])
    want = SCHEDULE.predict_x0(x, network(x, torch.full((3,), last), CONDITION, None), torch.full((LAYOUT.total_frames,), last))
    ours = ddim(network, SCHEDULE, noise(), CONDITION, steps, eta=1.0, fresh_noise=lambda: added)
    torch.testing.assert_close(ours, want, atol=1e-3, rtol=1e-3)


def test_ddim_is_reproducible() -> None:
    assert torch.equal(ddim(network, SCHEDULE, noise(), CONDITION, 5), ddim(network, SCHEDULE, noise(), CONDITION, 5))
    runs = [ddim(network, SCHEDULE, noise(), CONDITION, 5, 1.0, partial(noise, 1)) for _ in range(2)]
    assert torch.equal(*runs)


def test_ddim_self_conditions_on_the_previous_step() -> None:
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def spy(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        seen.append((x, timestep, estimate))
        return network(x, timestep, condition, estimate)

    out = ddim(spy, SCHEDULE, noise(), CONDITION, 4)
    assert [int(timestep[0]) for _, timestep, _ in seen] == [999, 749, 499, 249]
    assert all(timestep.shape == (3,) and timestep.dtype == torch.int64 for _, timestep, _ in seen)
    assert seen[0][2] is None, "zeros at the first step"
    clean = [SCHEDULE.predict_x0(x, network(x, timestep, CONDITION, None), LAYOUT.per_frame(timestep)) for x, timestep, _ in seen]
    for before, (_, _, estimate) in zip(clean, seen[1:], strict=False):
        assert estimate is not None and torch.equal(estimate, before)
    assert torch.equal(out, clean[-1])


def test_classifier_free_guidance_shares_the_estimate_of_both_branches() -> None:
    seen: list[tuple[list[bool], Tensor | None, Tensor]] = []

    def spy(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        seen.append((condition.condition_kept.tolist(), estimate, x))
        return network(x, timestep, condition, estimate)

    denoise = classifier_free_guidance(spy, Guidance(3.0), SCHEDULE, Condition.without_text)
    ddim(denoise, SCHEDULE, noise(), CONDITION, 2)
    assert [known for known, _, _ in seen] == [[True] * 2 + [False] * 2 + [True, False]] * 2, "videos of both branches, then images"
    assert seen[0][1] is None and seen[1][1] is not None
    conditional, null = LAYOUT.halve_frames(seen[1][1])
    assert torch.equal(conditional, null)
    first = classifier_free_guidance(network, Guidance(3.0), SCHEDULE, Condition.without_text)(
        noise(), torch.full((3,), 999), CONDITION, None
    )
    assert torch.equal(conditional, SCHEDULE.predict_x0(noise(), first, torch.full((LAYOUT.total_frames,), 999)))


def test_ddim_returns_given_context_frames_unchanged() -> None:
    mask = torch.zeros(LAYOUT.total_frames, 1, 4, 4)
    mask[0] = 1
    given = CONDITION.replace_context(noise(7), mask)
    out = ddim(network, SCHEDULE, noise(), given, 3)
    assert torch.equal(out[0], noise(7)[0])
    assert torch.equal(out[1:], ddim(network, SCHEDULE, noise(), CONDITION, 3)[1:])
    assert given.without_context() == CONDITION


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_shows_context_frames_with_the_noise_of_each_timestep(eta: float) -> None:
    """In training the network sees given frames noised like all others, and learns nothing about their v."""
    context_latents, seen, seeds = noise(7), [], count(100)

    def spy(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        seen.append((x, timestep, estimate))
        return torch.full_like(x, 1e3)

    given = CONDITION.with_context(context_latents, torch.tensor([2, 1, 1]))
    out = ddim(spy, SCHEDULE, noise(), given, 5, eta, fresh_noise=lambda: noise(next(seeds)))
    known = [0, 1, 3]
    assert torch.equal(out[known], context_latents[known]) and not torch.equal(out[2], context_latents[2])
    for x, timestep, estimate in seen:
        a, s = alpha_sigma_like(SCHEDULE, LAYOUT.per_frame(timestep), x)
        eps = ((x - a * context_latents) / s)[known]
        if eta == 0:
            torch.testing.assert_close(eps, noise()[known], atol=1e-4, rtol=1e-4)
        assert 0.5 < float(eps.std()) < 1.5, "the garbage that is said about given frames never gets into them"
        assert estimate is None or torch.equal(estimate[known], context_latents[known])


def of_two(told: bool) -> Denoise:
    """The right denoiser of a data set of two clips; knowing the past rules one of them out, if it is ``told``."""

    def denoise(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        n = condition.layout.per_frame(timestep)
        a, s = alpha_sigma_like(SCHEDULE, n, x)
        x0 = torch.empty_like(x)
        for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
            odds = []
            for clip in TWO:
                distance = (x[rows] - a[rows] * clip[rows]).square().sum() / (2 * s[rows][0] ** 2)
                if told and condition.context_latents is not None and condition.context_mask is not None:
                    distance = distance + 1e6 * ((condition.context_latents - clip)[rows].abs() * condition.context_mask[rows]).sum()
                odds.append(-distance.squeeze())
            share = torch.softmax(torch.stack(odds), 0)
            x0[rows] = share[0] * TWO[0][rows] + share[1] * TWO[1][rows]
        return SCHEDULE.target(x0, (x - a * x0) / s, n)

    return denoise


TWO = (noise(11), noise(12))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("frames", [1, 2])
def test_ddim_with_a_perfect_denoiser_continues_the_context_frames(told: bool, frames: int) -> None:
    """Told of it, or by the noisy frames alone, as a super-resolution stage without frame prediction is."""
    videos = LAYOUT.video_frames
    for clip in TWO:
        given = CONDITION.with_context(clip, torch.full((3,), frames))
        out = ddim(of_two(told), SCHEDULE, noise(3), given, 20)
        torch.testing.assert_close(out[:videos], clip[:videos], atol=1e-3, rtol=1e-3)


def test_classifier_free_guidance_over_context_leads_away_from_no_context() -> None:
    def network(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        if condition.context_latents is None or condition.context_mask is None:
            return torch.tanh(x)
        return torch.tanh(x + (condition.context_latents * condition.context_mask).roll(1, -1))

    given = CONDITION.with_context(noise(7), torch.ones(3, dtype=torch.int64))
    timestep = torch.full((3,), 500)
    u, c = network(noise(), timestep, CONDITION, None), network(noise(), timestep, given, None)
    one = classifier_free_guidance(network, Guidance(1.0), SCHEDULE, Condition.without_context)
    assert torch.equal(one(noise(), timestep, given, None), c)
    three = classifier_free_guidance(network, Guidance(3.0), SCHEDULE, Condition.without_context)
    torch.testing.assert_close(three(noise(), timestep, given, None), u + 3 * (c - u), atol=1e-5, rtol=1e-5)


def test_classifier_free_guidance_rescale_ignores_context_frames() -> None:
    """Nothing is learnt about their v, so it must not decide how strong the others are."""
    given = CONDITION.with_context(noise(7), torch.tensor([1, 2, 0]))
    assert given.context_mask is not None
    rest = ~given.context_mask[:, 0, 0, 0].bool()

    def wild(x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        assert condition.context_mask is not None
        return network(x, timestep, condition, estimate) + 50 * condition.context_mask * x

    timestep = torch.full((3,), 700)
    guidance = Guidance(6.0, rescale=1.0)
    tame, loud = (
        classifier_free_guidance(net, guidance, SCHEDULE, Condition.without_text)(noise(), timestep, given, None) for net in (network, wild)
    )
    torch.testing.assert_close(tame[rest], loud[rest], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [-1.0, -0.01, math.nan, math.inf])
def test_guidance_refuses_a_scale_below_zero(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be 0 or more"):
        Guidance(scale)


def test_ddim_reports_each_step() -> None:
    count = []
    ddim(network, SCHEDULE, noise(), CONDITION, 7, each_step=lambda: count.append(1))
    assert len(count) == 7


def test_classifier_free_guidance_of_one_is_the_conditional_model() -> None:
    def never(condition: Condition) -> Condition:
        raise AssertionError("the unconditional branch was run")

    one = classifier_free_guidance(network, Guidance(1.0), SCHEDULE, never)
    timestep = torch.full((3,), 400)
    assert torch.equal(one(noise(), timestep, CONDITION, None), network(noise(), timestep, CONDITION, None))
    assert torch.equal(ddim(one, SCHEDULE, noise(), CONDITION, 3), ddim(network, SCHEDULE, noise(), CONDITION, 3))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.5, 4.0])
def test_classifier_free_guidance_mixes_velocities(scale: float) -> None:
    timestep = torch.full((3,), 999)
    u, c = network(noise(), timestep, CONDITION.without_text(), None), network(noise(), timestep, CONDITION, None)
    mixed = classifier_free_guidance(network, Guidance(scale), SCHEDULE, Condition.without_text)(noise(), timestep, CONDITION, None)
    torch.testing.assert_close(mixed, u + scale * (c - u), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("phi", [0.5, 1.0])
def test_classifier_free_guidance_rescale_restores_the_std_of_each_sample(phi: float) -> None:
    timestep = torch.full((3,), 700)
    told = network(noise(), timestep, CONDITION, None)
    plain = classifier_free_guidance(network, Guidance(6.0), SCHEDULE, Condition.without_text)(noise(), timestep, CONDITION, None)
    rescaled = classifier_free_guidance(network, Guidance(6.0, rescale=phi), SCHEDULE, Condition.without_text)(
        noise(), timestep, CONDITION, None
    )
    for frames in (slice(0, 3), slice(3, 6), slice(6, 7)):  # two videos, an image
        want, before = told[frames].std(correction=0), plain[frames].std(correction=0)
        assert not math.isclose(float(want), float(before), rel_tol=0.05)
        by_hand = phi * plain[frames] * want / before + (1 - phi) * plain[frames]  # arXiv 2305.08891, equations 15 and 16
        torch.testing.assert_close(rescaled[frames], by_hand, atol=1e-4, rtol=1e-4)
        if phi == 1:
            torch.testing.assert_close(rescaled[frames].std(correction=0), want, atol=1e-4, rtol=1e-4)


def test_guidance_power_cosine_weight_is_one_at_noise_and_full_at_the_end() -> None:
    guidance = Guidance(3.8, "power-cosine", 4.0)
    assert guidance.weight(1000, 1000) == 1
    assert guidance.weight(0, 1000) == pytest.approx(3.8)
    assert guidance.weight(500, 1000) == pytest.approx(1 + 2.8 * (1 - math.cos(math.pi * 0.5**4)) / 2)
    weights = [guidance.weight(n, 1000) for n in range(1001)]
    assert weights == sorted(weights, reverse=True)


def test_guidance_constant_weight_is_constant() -> None:
    assert {Guidance(2.5).weight(n, 1000) for n in (0, 500, 999)} == {2.5}


def test_classifier_free_guidance_power_cosine_weighs_by_timestep() -> None:
    guidance = Guidance(3.8, "power-cosine")
    denoise = classifier_free_guidance(network, guidance, SCHEDULE, Condition.without_text)
    for n in (999, 500, 19):
        timestep = torch.full((3,), n)
        u, c = network(noise(), timestep, CONDITION.without_text(), None), network(noise(), timestep, CONDITION, None)
        want = u + guidance.weight(n, 1000) * (c - u)
        torch.testing.assert_close(denoise(noise(), timestep, CONDITION, None), want, atol=1e-5, rtol=1e-5)
