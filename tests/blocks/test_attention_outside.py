"""Window attention against attention that nobody here wrote: timm, torchvision, torch, and a mask over all pairs of tokens."""

import itertools

import pytest
import torch
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from walt_pl.blocks.attention import RelativePositionBias, Window, WindowAttention
from walt_pl.blocks.frames import FrameLayout

GRID = (4, 6)
WIDTH, HEADS = 16, 2
SW: Window = (1, *GRID)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def layer(window: Window) -> WindowAttention:
    """Every parameter drawn; no qk-norm, which none of the others have."""
    attention = WindowAttention(WIDTH, HEADS, window, "none", "math")
    generator = torch.Generator().manual_seed(1)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return attention.requires_grad_(False)


def multihead(attention: WindowAttention) -> nn.MultiheadAttention:
    """torch's attention with the same weights."""
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    weights = {
        "in_proj_weight": attention.qkv.weight,
        "in_proj_bias": attention.qkv.bias,
        "out_proj.weight": attention.out.weight,
        "out_proj.bias": attention.out.bias,
    }
    theirs.load_state_dict(weights)
    return theirs.eval().requires_grad_(False)


@pytest.mark.parametrize("rows, columns", [(3, 4), (8, 8), (1, 5)])
def test_relative_position_bias_spatial_index_equals_swin_of_timm(rows: int, columns: int) -> None:
    assert torch.equal(RelativePositionBias((1, rows, columns), num_heads=1).index, get_relative_position_index(rows, columns))


@pytest.mark.parametrize("window", [(3, 2, 4), (5, 8, 8), (5, 8, 14)])
def test_relative_position_bias_stw_index_equals_video_swin_of_torchvision(window: Window) -> None:
    theirs = ShiftedWindowAttention3d(1, list(window), [0, 0, 0], num_heads=1)
    assert torch.equal(RelativePositionBias(window, num_heads=1).index, theirs.relative_position_index)


@pytest.mark.parametrize("window", [SW, (3, 2, 3), (3, 4, 6)])
def test_window_attention_equals_video_swin_of_torchvision(window: Window) -> None:
    ours = layer(window)
    theirs = ShiftedWindowAttention3d(WIDTH, list(window), [0, 0, 0], HEADS).eval().requires_grad_(False)
    theirs.qkv.load_state_dict(ours.qkv.state_dict())
    theirs.proj.load_state_dict(ours.out.state_dict())
    theirs.relative_position_bias_table.copy_(ours.bias.table.T)
    videos = noise(2, 3, *GRID, WIDTH)
    got = ours(videos.flatten(2, 3).flatten(0, 1), FrameLayout(2, 3, 0), GRID)
    torch.testing.assert_close(got.view_as(videos), theirs(videos), atol=1e-4, rtol=1e-4)


def test_window_attention_of_one_window_equals_multihead_attention_of_torch() -> None:
    ours = layer(SW)
    x = noise(3, 24, WIDTH)
    want, _ = multihead(ours)(x, x, x, attn_mask=ours.bias().repeat(3, 1, 1))
    torch.testing.assert_close(ours(x, FrameLayout(0, 1, 3), GRID), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [SW, (3, 2, 3), (3, 4, 3)])
def test_window_attention_equals_full_attention_under_the_mask_of_its_windows(window: Window) -> None:
    """All tokens of a joint batch at once, each pair allowed or not by where the two lie; images in STW layers see themselves alone."""
    ours, layout = layer(window), FrameLayout(videos=2, frames=3, images=2)
    frames = [("video", v, t) for v in range(2) for t in range(3)] + [("image", i, 0) for i in range(2)]
    tokens = [(*frame, row, column) for frame in frames for row, column in itertools.product(range(GRID[0]), range(GRID[1]))]
    table = ours.bias.table.view(HEADS, *(2 * side - 1 for side in window))
    mask = torch.full((HEADS, len(tokens), len(tokens)), -torch.inf)
    for i, query in enumerate(tokens):
        for j, key in enumerate(tokens):
            if window[0] > 1 and query[0] == "image":
                if i == j:
                    mask[:, i, j] = 0.0
                continue
            boxes = [(t // window[0], row // window[1], column // window[2]) for _, _, t, row, column in (query, key)]
            if query[:2] == key[:2] and boxes[0] == boxes[1]:
                dt, dh, dw = (a - b for a, b in zip(query[2:], key[2:], strict=True))
                mask[:, i, j] = table[:, dt + window[0] - 1, dh + window[1] - 1, dw + window[2] - 1]
    x = noise(layout.total_frames, 24, WIDTH)
    flat = x.flatten(0, 1)[None]
    want, _ = multihead(ours)(flat, flat, flat, attn_mask=mask)
    torch.testing.assert_close(ours(x, layout, GRID).flatten(0, 1), want[0], atol=1e-4, rtol=1e-4)
