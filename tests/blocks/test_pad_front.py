"""Frames in front of a clip: values and gradients of `cat`, in channels-last memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from walt_pl.blocks.depth_to_space import depth_to_space
from walt_pl.blocks.pad_front import pad_front


def clip(frames: int, seed: int = 0) -> Tensor:
    x = torch.randn(2, 16, frames, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last_3d)


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((y * weight).sum(), inputs))


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("cached", [0, 1, 2])
@pytest.mark.parametrize("frames", [1, 4])
def test_pad_front_equals_cat_with_its_gradients(activation: bool, cached: int, frames: int) -> None:
    x, before = clip(frames).requires_grad_(), clip(cached, 1).requires_grad_() if cached else None
    got = pad_front(x, 2, before, activation)
    y = F.silu(x) if activation else x
    want = torch.cat([y[:, :, :1].expand(-1, -1, 2, -1, -1) if before is None else before, y], dim=2)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(got, want)
    inputs = [x] if before is None else [x, before]
    torch.testing.assert_close(gradients(got, inputs), gradients(want, inputs))


def test_pad_front_converts_to_the_dtype_of_the_next_convolution() -> None:
    x = clip(3).requires_grad_()
    for activation in (False, True):
        y = pad_front(x, 2, activation=activation, dtype=torch.float32)
        assert y.dtype == torch.float32 and gradients(y, [x])[0].dtype == torch.float64


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (4, 2, 1)])
def test_depth_to_space_equals_a_pixel_shuffle_with_its_gradient(drop: bool, frames: int, factors: tuple[int, int, int]) -> None:
    st, sh, sw = factors
    x = clip(frames).requires_grad_()
    got = depth_to_space(x, factors, drop)
    apart = x.unflatten(1, (-1, st, sh, sw))  # b c st sh sw t h w
    want = apart.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, st - 1 if drop else 0 :]
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(got, want)
    torch.testing.assert_close(gradients(got, [x]), gradients(want, [x]))
