"""The forward process, against its equations and against diffusers."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from torch import Tensor

from walt_pl.diffusion.path import add_noise, alpha_sigma_like, trailing_timesteps
from walt_pl.diffusion.schedule import NoiseSchedule

LEVELS = torch.tensor([0, 1, 19, 350, 500, 998, 999])


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 2, 3, 4, generator=generator), torch.randn(7, 2, 3, 4, generator=generator)


def test_noise_schedule_terminal_snr_is_exactly_zero() -> None:
    schedule = NoiseSchedule()
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert float(schedule.alphas_cumprod[-1]) == 0.0
    x0, eps = pair()
    assert torch.equal(add_noise(schedule, x0, eps, torch.full((7,), 999)), eps)


def test_noise_schedule_without_rescaling_keeps_a_little_signal() -> None:
    assert float(NoiseSchedule(zero_terminal_snr=False).alphas_cumprod[-1]) == pytest.approx(4.036e-5, rel=1e-3)


def test_noise_schedule_rescaling_keeps_the_first_timestep() -> None:
    assert float(NoiseSchedule().alphas_cumprod[0]) == pytest.approx(1 - 1e-4, abs=1e-12)
    assert bool((NoiseSchedule().alphas_cumprod.diff() < 0).all())


def test_noise_schedule_rescaled_betas_equal_diffusers() -> None:
    betas = rescale_zero_terminal_snr(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    abar = NoiseSchedule().alphas_cumprod
    ours = 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
    torch.testing.assert_close(ours, betas, atol=1e-9, rtol=1e-7)
    reference = DDIMScheduler(1000, 1e-4, 0.02, "linear", rescale_betas_zero_snr=True)
    torch.testing.assert_close(abar.float(), reference.alphas_cumprod, atol=2e-6, rtol=0)


def test_noise_schedule_noise_and_velocity_equal_diffusers() -> None:
    schedule, (x0, eps) = NoiseSchedule(), pair()
    reference = DDIMScheduler(1000, 1e-4, 0.02, "linear", rescale_betas_zero_snr=True)
    want = reference.add_noise(x0, eps, LEVELS)
    torch.testing.assert_close(add_noise(schedule, x0, eps, LEVELS), want, atol=1e-4, rtol=0)
    want = reference.get_velocity(x0, eps, LEVELS)
    torch.testing.assert_close(schedule.target(x0, eps, LEVELS), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_noise_schedule_predict_x0_and_eps_invert_noise_and_velocity(zero_terminal_snr: bool) -> None:
    schedule, (x0, eps) = NoiseSchedule(zero_terminal_snr=zero_terminal_snr), pair()
    xt, v = add_noise(schedule, x0, eps, LEVELS), schedule.target(x0, eps, LEVELS)
    torch.testing.assert_close(schedule.predict_x0(xt, v, LEVELS), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.predict_eps(xt, v, LEVELS), eps, atol=1e-5, rtol=1e-5)
    again = schedule.predict_x0(xt, v, LEVELS), schedule.predict_eps(xt, v, LEVELS)
    torch.testing.assert_close(add_noise(schedule, *again, LEVELS), xt, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.target(*again, LEVELS), v, atol=1e-5, rtol=1e-5)


def test_noise_schedule_velocity_at_pure_noise_is_minus_x0() -> None:
    x0, eps = pair()
    assert torch.equal(NoiseSchedule().target(x0, eps, torch.full((7,), 999)), -x0)


def test_noise_schedule_preserves_the_variance() -> None:
    a, s = alpha_sigma_like(NoiseSchedule(), torch.arange(1000), torch.zeros(1000, 1))
    assert a.dtype == s.dtype == torch.float32 and a.shape == (1000, 1)
    torch.testing.assert_close(a.square() + s.square(), torch.ones(1000, 1))


def test_trailing_timesteps_include_the_last() -> None:
    assert trailing_timesteps(NoiseSchedule(), 50) == list(range(999, 0, -20))
    assert trailing_timesteps(NoiseSchedule(), 1) == [999]
    assert trailing_timesteps(NoiseSchedule(), 1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("count", [1, 4, 10, 20, 50, 1000])
def test_trailing_timesteps_equal_diffusers(count: int) -> None:
    reference = DDIMScheduler(1000, timestep_spacing="trailing")
    reference.set_timesteps(count)
    assert trailing_timesteps(NoiseSchedule(), count) == reference.timesteps.tolist()


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_trailing_timesteps_refuse_an_impossible_number_of_steps(count: int) -> None:
    with pytest.raises(ValueError, match=r"1 \.\. 1000"):
        trailing_timesteps(NoiseSchedule(), count)
