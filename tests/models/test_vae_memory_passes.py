"""Between two convolutions of the autoencoder the layout never changes: no copy, no `cat`, one call of norm_silu_pad."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from walt_pl.blocks import causal_conv
from walt_pl.blocks.norm_silu_pad import NormName
from walt_pl.models.vae import VAE, VAEConfig

SIZES: dict[NormName, VAEConfig] = {
    "group": VAEConfig(32, (1, 2, 2), ((1, 2, 2), (2, 2, 2)), (1, 1, 1), 1, 4, "group"),
    "layer": VAEConfig(8, (1, 2, 2), ((1, 2, 2), (2, 2, 2)), (1, 1, 1), 1, 4, "layer"),
}
COPIES = (
    "aten.clone.default",
    "aten.cat.default",
    "aten.contiguous.default",
    "aten.constant_pad_nd.default",
    "aten.select_backward.default",
)


class LayoutChanges(TorchDispatchMode):
    """Count operations that copy whole activations, and convolutions of an input that is not in channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if name in COPIES and isinstance(out, Tensor) and out.dim() > 3:
            self.found[name] += 1
        if name == "aten._to_copy.default" and (args[0].dim() > 3 and args[0].stride() != out.stride()):
            self.found[name] += 1
        if name == "aten.convolution.default":
            self.convolutions += 1
            x, weight = args[:2]
            last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
            kept = x.is_contiguous(memory_format=last) and out.is_contiguous(memory_format=last)
            self.found["convolution of another layout"] += not kept
            self.found["kernel of another layout"] += not weight.is_contiguous(memory_format=last)
        return out


def changes(norm: NormName, frames: int, train: bool) -> tuple[LayoutChanges, LayoutChanges]:
    """Return the counts of the encoder and of the decoder, with their backward passes where `train`."""
    model, counts = VAE(SIZES[norm]).requires_grad_(train), []
    factor = model.factors[0]
    x = torch.randn(2, 3, frames, 8, 8)
    z = torch.randn(2, 4, 1 + (frames - 1) // factor, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        for network, given in ((model.encoder, x), (model.decoder, z)):
            with LayoutChanges() as mode:
                y = network(given.contiguous(memory_format=torch.channels_last_3d))
                if train:
                    y.float().square().mean().backward()
            counts.append(mode)
    return counts[0], counts[1]


UP = 2 * 3
"""Levels of the decoder and axes along which the plain function repeats the modulation; the kernels never do."""


def assert_bounded(counts: LayoutChanges, clones: int, cats: int = 0) -> None:
    """Allow some clones, of the given input and those that the caller names, and some cats. Nothing else may occur at all."""
    allowed = {"aten.clone.default": clones, "aten.cat.default": cats}
    assert not {name: n for name, n in counts.found.items() if n > allowed.get(name, 0)}


@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("frames", [1, 5])
def test_vae_forward_pass_changes_no_layout(norm: NormName, frames: int) -> None:
    for counts in changes(norm, frames, train=False):
        assert counts.convolutions > 10
        assert_bounded(counts, clones=1 + UP)


@pytest.mark.parametrize("norm", SIZES)
def test_vae_training_pass_changes_no_layout(norm: NormName) -> None:
    for counts in changes(norm, 5, train=True):
        # Clones: gradients of the convolutions that change the resolution, with no norm in front. Cats: gradients of scale and shift.
        assert_bounded(counts, clones=1 + UP + len(SIZES[norm].strides), cats=len(SIZES[norm].num_res_blocks))


@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("frames", [1, 5])
def test_vae_training_pass_fills_no_tensor_for_one_frame_of_it(norm: NormName, frames: int) -> None:
    """The gradient of an index is a tensor of zeros, and of another layout."""
    assert not any(counts.found["aten.select_backward.default"] for counts in changes(norm, frames, train=True))


@pytest.mark.parametrize("norm", SIZES)
def test_vae_calls_one_function_between_two_convolutions(norm: NormName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in each residual block, one at each output and one at each level of the decoder."""
    calls = []
    function = causal_conv.norm_silu_pad

    def count(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(causal_conv, "norm_silu_pad", count)
    model = VAE(SIZES[norm])
    model.decode(model.encode(torch.randn(1, 3, 5, 8, 8)).mean)
    blocks = sum(isinstance(module, causal_conv.ResBlock) for module in model.modules())
    assert len(calls) == 2 * blocks + 2 + len(SIZES[norm].num_res_blocks)


@pytest.mark.parametrize("norm", SIZES)
def test_vae_defers_the_bias_of_a_convolution_to_the_next_norm(norm: NormName, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA. The values and gradients are those of the convolution that adds its own bias."""
    torch.manual_seed(0)
    model, x, found = VAE(SIZES[norm]), torch.randn(1, 3, 5, 8, 8), []
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    for defer in (False, True):
        monkeypatch.setattr(causal_conv, "defers_bias", lambda x, defer=defer: defer)
        model.zero_grad()
        y = model.decode(model.encode(x).mean)
        y.square().mean().backward()
        found.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
