"""The residual stream is float32 under autocast (one device, DDP), and where the weights are bfloat16 (ZeRO)."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Block, Denoiser, DenoiserConfig

DEEP = DenoiserConfig(
    width=64, depth=52, num_heads=4, latent_channels=4, size=(3, 8, 8), window_size=(3, 4, 4), text_width=16, attention="math"
)
LAYOUT = FrameLayout(videos=2, frames=3, images=2)
STEP = torch.tensor([999, 400, 20, 700])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """As trained: what starts at zero, every gate and the last layer among it, is not zero any more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(DEEP)
        for p in denoiser.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.1)
    return denoiser.requires_grad_(False)


CONDITION = Condition(LAYOUT, torch.ones(4, dtype=torch.bool), text=noise(4, 5, 16, seed=1), text_mask=torch.ones(4, 5, dtype=torch.bool))


def velocity(denoiser: Denoiser) -> Tensor:
    return denoiser(noise(LAYOUT.total_frames, 4, 8, 8, seed=2), STEP, CONDITION)


def error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, over that of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def streams(denoiser: Denoiser) -> set[torch.dtype]:
    """Dtypes of the tokens between the layers."""
    seen: set[torch.dtype] = set()
    handles = [block.register_forward_hook(lambda module, given, out: seen.add(out.dtype)) for block in denoiser.blocks]
    velocity(denoiser)
    for handle in handles:
        handle.remove()
    return seen


def test_denoiser_residual_stream_is_float32_under_autocast_and_bfloat16_weights(denoiser: Denoiser) -> None:
    assert streams(deepcopy(denoiser).bfloat16()) == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert streams(denoiser) == {torch.float32}


def test_denoiser_error_of_bfloat16_weights_is_that_of_autocast(denoiser: Denoiser) -> None:
    """52 layers; the figures of docs/SCALING.md. A bfloat16 stream, which each layer rounds, has three times the error."""
    wanted, low_res = velocity(denoiser), deepcopy(denoiser).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ddp = error(velocity(denoiser), wanted)
    zero = error(velocity(low_res), wanted)
    for block in low_res.blocks:
        assert isinstance(block, Block)
        block.register_forward_pre_hook(lambda module, given: (given[0].bfloat16(), *given[1:]))
        block.register_forward_hook(lambda module, given, out: out.bfloat16())
    rounded = error(velocity(low_res), wanted)
    print(f"error of v: autocast {ddp:.2%}, bfloat16 weights {zero:.2%}, bfloat16 stream {rounded:.2%}")
    assert zero < 1.3 * ddp and rounded > 2 * zero
