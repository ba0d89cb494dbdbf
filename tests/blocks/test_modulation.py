"""AdaLN-LoRA: a shared modulation, and a low-rank correction for each layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.modulation import AdaLN, FinalModulation, modulate
from walt_pl.models.denoiser import Block, DenoiserConfig

WIDTH, LAYERS = 8, 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def cond() -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize("layer", [0, 1])
def test_block_starts_as_the_identity(rank: int | None, layer: int) -> None:
    config = DenoiserConfig(WIDTH, LAYERS, num_heads=2, size=(2, 4, 4), window_size=(2, 2, 2), lora_rank=rank, text_width=6)
    layout = FrameLayout(1, 2, 3)
    modulation = AdaLN(WIDTH, LAYERS, rank)(cond())[layer]
    x, text = torch.randn(layout.total_frames, 16, WIDTH), torch.randn(4, 3, WIDTH)
    assert torch.equal(Block(config, layer)(x, modulation, layout, text, torch.ones(4, 3, dtype=torch.bool)), x)


def test_adaln_adds_a_low_rank_correction_to_every_layer() -> None:
    adaln = AdaLN(WIDTH, LAYERS, rank=2)
    for parameter in adaln.parameters():
        nn.init.normal_(parameter)
    out = adaln(cond())
    assert out.shape == (LAYERS, 4, 6, WIDTH)
    c = F.silu(cond())
    for layer in range(LAYERS):
        by_hand = adaln.mlp(c) + c @ adaln.down[layer].T @ adaln.up[layer].T
        torch.testing.assert_close(out[layer].flatten(1), by_hand)


def test_adaln_corrections_of_layers_have_the_rank_of_lora() -> None:
    adaln = AdaLN(WIDTH, LAYERS, rank=2)
    for parameter in adaln.parameters():
        nn.init.normal_(parameter)
    # The corrections are linear in silu(cond): over more samples than ranks they still span r dimensions.
    many = torch.randn(20, WIDTH)
    correction = (adaln(many)[1].flatten(1) - adaln.mlp(F.silu(many))).double()
    assert int(torch.linalg.matrix_rank(correction, rtol=1e-4)) == 2


def test_adaln_separate_equals_a_linear_layer_of_each_layer() -> None:
    adaln = AdaLN(WIDTH, LAYERS, rank=None)
    assert torch.equal(adaln(cond()), torch.zeros(LAYERS, 4, 6, WIDTH))
    nn.init.normal_(adaln.weight)
    nn.init.normal_(adaln.bias)
    for layer, got in enumerate(adaln(cond())):
        torch.testing.assert_close(got.flatten(1), F.linear(F.silu(cond()), adaln.weight[layer], adaln.bias[layer]))


@pytest.mark.parametrize("rank", [2, None])
def test_adaln_learns_from_its_zero_start(rank: int | None) -> None:
    adaln = AdaLN(WIDTH, LAYERS, rank)
    (adaln(cond()) - 1).square().sum().backward()
    moved = [name for name, p in adaln.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert moved == (["weight", "bias"] if rank is None else ["up", "mlp.2.weight", "mlp.2.bias"])


def test_modulate_with_zero_shift_and_scale_changes_nothing() -> None:
    shift, scale = FinalModulation(WIDTH)(cond())
    x = torch.randn(4, 5, WIDTH)
    assert torch.equal(modulate(x, shift, scale), x)
    torch.testing.assert_close(modulate(x, shift + 2, scale + 3), 4 * x + 2)
