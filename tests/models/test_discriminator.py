"""The critic: one logit a clip, of videos and of images."""

import pytest
import torch
import torch.nn.functional as F

from walt_pl.models.discriminator import BlurPool, Discriminator, DiscriminatorConfig

TINY = DiscriminatorConfig(width=4, multipliers=(2, 2), size=(8, 12))


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_every_clip_gets_one_logit(frames: int) -> None:
    torch.manual_seed(0)
    critic = Discriminator(TINY)
    x = torch.randn(3, 3, frames, 8, 12)
    logits = critic(x)
    assert logits.shape == (3,) and logits.dtype == torch.float32
    torch.testing.assert_close(critic(x[1:2]), logits[1:2])


def test_full_size_has_the_stated_number_of_parameters() -> None:
    with torch.device("meta"):
        critic = Discriminator(DiscriminatorConfig())
    assert 61e6 <= sum(p.numel() for p in critic.parameters()) <= 68e6


@pytest.mark.parametrize("shape", [(1, 8, 12), (5, 8, 12), (17, 7, 4)])
def test_blur_pool_is_a_strided_convolution_with_121_cubed(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *shape)
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.einsum("i,j,k->ijk", line, line, line).expand(3, 1, 3, 3, 3)
    want = F.conv3d(F.pad(x, (1,) * 6, mode="replicate"), kernel, stride=2, groups=3)
    torch.testing.assert_close(BlurPool()(x), want)


def test_blur_pool_keeps_a_constant() -> None:
    torch.testing.assert_close(BlurPool()(torch.full((1, 1, 5, 4, 4), 3.0)), torch.full((1, 1, 3, 2, 2), 3.0))


@pytest.mark.parametrize("frames", [1, 5])
def test_every_parameter_learns(frames: int) -> None:
    torch.manual_seed(0)
    critic = Discriminator(TINY)
    critic(torch.randn(3, 3, frames, 8, 12)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in critic.parameters())


def test_clips_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"discriminator.size is \(8, 12\), got clips of \(12, 8\)"):
        Discriminator(TINY)(torch.zeros(1, 3, 1, 12, 8))


def test_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        DiscriminatorConfig(size=(128, 120))
