"""The layers of the autoencoder never look ahead in time, and a single frame is a video."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walt_pl.blocks.causal_conv import (
    CausalConv3d,
    CausalConvCache,
    CausalNorm,
    ResBlock,
    SpatialNorm,
    Strides,
    Upsample,
)
from walt_pl.blocks.norm_silu_pad import NormName

Drawn = TypeVar("Drawn", bound=nn.Module)

NORMS: tuple[NormName, ...] = ("group", "layer")
STRIDE_ONE: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: CausalConv3d(32, 32),
    "conv1": lambda: CausalConv3d(32, 8, kernel=1),
    "spatial stride": lambda: CausalConv3d(32, 32, stride=(1, 2, 2)),
    "group norm": lambda: CausalNorm("group", 32),
    "layer norm": lambda: CausalNorm("layer", 32),
    "res block, group": lambda: ResBlock(32, 64, "group"),
    "res block, layer": lambda: ResBlock(32, 64, "layer"),
}


def clip(frames: int, channels: int = 32, side: int = 4) -> Tensor:
    return torch.randn(2, channels, frames, side, side, generator=torch.Generator().manual_seed(frames))


def other_future(x: Tensor, start: int) -> Tensor:
    """Return the clip with other frames, of another spread, from `start` on."""
    y = x.clone()
    y[:, :, start:] = 3 * torch.randn(y[:, :, start:].shape, generator=torch.Generator().manual_seed(1)) + 1
    return y


def randomised(module: Drawn) -> Drawn:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


@pytest.mark.parametrize("name", STRIDE_ONE)
@torch.no_grad()
def test_causal_conv_output_i_depends_on_inputs_up_to_i_only(name: str) -> None:
    layer = randomised(STRIDE_ONE[name]())
    x = clip(6)
    y = layer(x)
    for k in range(1, 6):
        changed = layer(other_future(x, k))
        assert torch.equal(changed[:, :, :k], y[:, :, :k]), f"frame {k} changed the past"
        assert not torch.equal(changed[:, :, k], y[:, :, k])


@torch.no_grad()
def test_causal_conv_temporal_stride_sees_up_to_its_own_frame_only() -> None:
    layer = randomised(CausalConv3d(8, 8, stride=(2, 2, 2)))
    x = clip(9, 8)
    y = layer(x)
    for k in range(1, 9):
        past = (k + 1) // 2  # outputs i with 2 i < k
        changed = layer(other_future(x, k))
        assert torch.equal(changed[:, :, :past], y[:, :, :past])
        assert not torch.equal(changed[:, :, past], y[:, :, past])


@pytest.mark.parametrize(("frames", "want"), [(17, 9), (9, 5), (5, 3), (1, 1)])
@torch.no_grad()
def test_causal_conv_temporal_stride_keeps_one_plus_multiples(frames: int, want: int) -> None:
    assert CausalConv3d(8, 8, stride=(2, 2, 2))(clip(frames, 8)).shape == (2, 8, want, 2, 2)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@torch.no_grad()
def test_causal_conv_pad_repeats_the_first_frame(stride: Strides) -> None:
    layer = CausalConv3d(8, 8, stride=stride)
    x = clip(5, 8)
    by_hand = F.conv3d(torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2), layer.weight, layer.bias, stride, (0, 1, 1))
    assert torch.equal(layer(x), by_hand)
    still = layer(x[:, :, :1].expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(still, still[:, :, :1].expand_as(still))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@torch.no_grad()
def test_causal_conv_one_frame_fast_path_equals_the_3d_convolution(kernel: int, stride: Strides) -> None:
    layer = CausalConv3d(8, 8, kernel=kernel, stride=stride)
    x = clip(1, 8)
    whole = F.conv3d(x.expand(-1, -1, kernel, -1, -1), layer.weight, layer.bias, stride, layer.padding)
    torch.testing.assert_close(layer(x), whole, atol=1e-5, rtol=1e-5)
    # A stream switches the fast path off: what is left is the layer's own 3D convolution.
    torch.testing.assert_close(layer(x), layer(x, CausalConvCache()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_causal_norm_normalises_each_frame_on_its_own(norm: NormName) -> None:
    layer = CausalNorm(norm, 64)
    x = clip(3, 64)
    apart = torch.cat([layer(x[:, :, i : i + 1]) for i in range(3)], dim=2)
    torch.testing.assert_close(layer(x), apart)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 2), (4, 2, 2)])
@torch.no_grad()
def test_spatial_norm_modulates_frames_with_their_own_latent(norm: NormName, factors: Strides) -> None:
    layer = randomised(SpatialNorm(32, 4, norm))
    x, z = clip(1 + 3 * factors[0], 32, 4), clip(4, 4, 4 // factors[1])
    y = layer(x, z, factors)
    scale, shift = layer.modulation(z).chunk(2, dim=1)
    normed = layer.norm(x)
    for frame in range(x.shape[2]):
        latent = -(-frame // factors[0])  # latent j governs the frames s(j-1)+1 .. sj
        for row in range(4):
            for column in range(4):
                place = (slice(None), slice(None), latent, row // factors[1], column // factors[2])
                by_hand = normed[:, :, frame, row, column] * (1 + scale[place]) + shift[place]
                torch.testing.assert_close(y[:, :, frame, row, column], by_hand)


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_spatial_norm_hides_later_latents_from_earlier_frames(norm: NormName) -> None:
    layer = randomised(SpatialNorm(32, 4, norm))
    x, z = clip(13), clip(4, 4)
    y = layer(x, z, (4, 1, 1))
    for j in range(1, 4):
        changed = layer(other_future(x, 4 * (j - 1) + 1), other_future(z, j), (4, 1, 1))
        assert torch.equal(changed[:, :, : 4 * (j - 1) + 1], y[:, :, : 4 * (j - 1) + 1])
        assert not torch.equal(changed[:, :, 4 * (j - 1) + 1], y[:, :, 4 * (j - 1) + 1])


def test_spatial_norm_starts_as_a_plain_norm() -> None:
    layer = SpatialNorm(32, 4, "group")
    x = clip(3)
    assert torch.equal(layer(x, clip(3, 4), (1, 1, 1)), layer.norm(x))


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2)])
@torch.no_grad()
def test_upsample_is_causal_and_keeps_the_width(factors: Strides) -> None:
    layer = randomised(Upsample(8, factors))
    x = clip(4, 8)
    y = layer(x)
    s = factors[0]
    assert y.shape == (2, 8, 1 + 3 * s, 8, 8)
    assert layer(x[:, :, :1]).shape == (2, 8, 1, 8, 8)
    torch.testing.assert_close(layer(x[:, :, :1]), y[:, :, :1], atol=1e-5, rtol=1e-5)
    for j in range(1, 4):
        seen = 1 + s * (j - 1)  # frame 0 belongs to input 0, frames s(j-1)+1 .. sj to input j
        changed = layer(other_future(x, j))
        assert torch.equal(changed[:, :, :seen], y[:, :, :seen])
        assert not torch.equal(changed[:, :, seen], y[:, :, seen])


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("sizes", [(1, 4, 4, 4), (5, 8), (9, 2, 2)])
@torch.no_grad()
def test_causal_conv_cache_in_chunks_equals_whole(stride: Strides, sizes: tuple[int, ...]) -> None:
    layer = CausalConv3d(8, 8, stride=stride)
    x = clip(13, 8)
    cache = CausalConvCache()
    parts = [layer(part, cache) for part in x.split(sizes, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), layer(x), atol=1e-5, rtol=1e-5)
    assert cache.inputs[layer].shape[2] == 3 - stride[0], "the memory of a stream does not grow"


@pytest.mark.parametrize("norm", NORMS)
def test_causal_norm_learns_scale_and_shift_by_default(norm: NormName) -> None:
    assert [tuple(p.shape) for p in CausalNorm(norm, 32).parameters()] == [(32,), (32,)]
    assert list(CausalNorm(norm, 32, affine=False).parameters()) == []
