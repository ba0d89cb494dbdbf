"""Sums and casts of a frozen weight are made once, and anew where the weight changes in any way."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from walt_pl.blocks.causal_conv import CausalConv3d, CausalConvCache
from walt_pl.blocks.kept_weights import KeptWeights


def frozen() -> CausalConv3d:
    torch.manual_seed(0)
    return CausalConv3d(4, 4).requires_grad_(False)


def clip(frames: int) -> Tensor:
    return torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(frames))


def made_anew(layer: CausalConv3d, x: Tensor) -> Tensor:
    """Return the output of a layer with the same weights that has kept nothing."""
    other = CausalConv3d(4, 4).to(x.dtype).requires_grad_(False)
    other.load_state_dict(layer.state_dict())
    found: Tensor = other(x)
    return found


def test_kept_weights_make_a_frozen_weight_once_and_a_trained_one_each_time() -> None:
    kept, weight, calls = KeptWeights(), torch.ones(2), []

    def make(w: Tensor) -> Tensor:
        calls.append(1)
        return 2 * w

    assert torch.equal(kept.get(weight, "a", make), kept.get(weight, "a", make)) and len(calls) == 1
    kept.get(weight, "b", make)
    assert len(calls) == 2, "each name has its own"
    kept.get(weight.requires_grad_(), "a", make)
    kept.get(weight, "a", make)
    assert len(calls) == 4


def load(layer: CausalConv3d) -> CausalConv3d:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
    return layer


def assign(layer: CausalConv3d) -> CausalConv3d:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)
    return layer


def write(layer: CausalConv3d) -> CausalConv3d:
    layer.weight.mul_(2)
    return layer


def swap_with_average(layer: CausalConv3d) -> CausalConv3d:
    """Write through `.data` while the weight is trained, as callbacks/ema.py does."""
    layer.requires_grad_(True)
    layer(clip(1))
    layer.weight.data.mul_(2)
    return layer


def replace_data(layer: CausalConv3d) -> CausalConv3d:
    for _ in range(4):  # the allocator may give the freed address again
        layer.weight.data = layer.weight.data * 2
    return layer


def round_weights(layer: CausalConv3d) -> CausalConv3d:
    return layer.bfloat16().float()


CHANGES: dict[str, Callable[[CausalConv3d], CausalConv3d]] = {
    "load_state_dict": load,
    "assign": assign,
    "in place": write,
    "average": swap_with_average,
    "data": replace_data,
    "to": round_weights,
    "deepcopy": lambda layer: load(copy.deepcopy(layer)),
    "pickle": lambda layer: load(pickle.loads(pickle.dumps(layer))),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_causal_conv_kept_sum_follows_the_weight(name: str) -> None:
    layer, x = frozen(), clip(1)
    before = layer(x)
    assert torch.equal(layer(x), before)
    changed = CHANGES[name](layer)
    assert torch.equal(changed(x), made_anew(changed, x))
    assert not torch.equal(changed(x), before)


@torch.no_grad()
def test_causal_conv_keeps_nothing_in_its_state_dict_or_copies() -> None:
    layer = frozen()
    layer(clip(1))
    assert layer._kept._kept and list(layer.state_dict()) == ["weight", "bias"]
    assert not copy.deepcopy(layer)._kept._kept
    assert not layer.to(torch.float64)._kept._kept, "the old weights' memory is free"


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_causal_conv_kept_weight_has_the_dtype_of_the_pass(frames: int) -> None:
    layer, x = frozen(), clip(frames)
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16 and full.dtype == torch.float32
    assert torch.equal(layer(x), full)
    torch.testing.assert_close(low.float(), full, atol=0.05, rtol=0.05)


def test_causal_conv_kept_in_inference_mode_serves_a_pass_with_gradients() -> None:
    layer, x = frozen(), clip(1).requires_grad_()
    with torch.inference_mode():
        layer(x.detach())
    layer(x).sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_causal_conv_one_frame_gives_the_weights_the_gradient_of_the_3d_convolution() -> None:
    layer = CausalConv3d(4, 4)
    found = []
    for cache in (None, CausalConvCache()):
        layer.zero_grad()
        layer(clip(1), cache).square().sum().backward()
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.clone())
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
def test_causal_conv_keeps_nothing_over_a_step_of_a_fused_optimiser(frames: int) -> None:
    """An autoencoder is frozen in its discriminator's step, and trains again after it."""
    layer, x = frozen(), clip(frames)
    layer(x)
    layer.requires_grad_()
    optimizer, version = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True), layer.weight._version
    layer(x).square().sum().backward()
    optimizer.step()
    assert layer.weight._version == version, "the reason for the rule"
    wanted = layer(x).detach()
    assert torch.equal(layer.requires_grad_(False)(x), wanted)
