"""Cases of `norm_silu_pad`, with the error of the kernels against PyTorch's operations in float64.

As a program (with TRITON_INTERPRET=1, which Triton reads when it is imported), it checks the kernels on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from walt_pl.blocks.norm_silu_pad import Modulation, NormName, plain_norm_silu_pad, triton_norm_silu_pad
from walt_pl.blocks.norm_silu_pad_ops import backward_op, forward_op

TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Largest norm of the error over the norm of the value, where output and gradient of x are rounded once to that dtype."""


@dataclass(frozen=True)
class Case:
    norm: NormName
    channels: int
    groups: int
    shape: tuple[int, int, int, int]
    """b, t, h, w."""
    past: int = 0
    before: bool = False
    affine: bool = False
    conv_bias: bool = False
    factors: tuple[int, int, int] | None = None
    """Of the modulation, None for none."""
    skip: int = 0
    activation: bool = True
    mean: float = 3.0

    def inputs(self, dtype: torch.dtype, device: str) -> tuple[dict[str, Tensor], Tensor]:
        """Draw the inputs by name, and a gradient of the output."""
        torch.manual_seed(0)
        (b, t, h, w), c = self.shape, self.channels
        named = {"x": self.mean + torch.randn(b, c, t, h, w).contiguous(memory_format=torch.channels_last_3d)}
        if self.factors is not None:
            st, sh, sw = self.factors
            named["modulation"] = torch.randn(b, 2 * c, (t + self.skip) // st, h // sh, w // sw) / 2
        if self.before:
            named["before"] = torch.randn(b, c, self.past, h, w)
        named = {name: value.to(device, dtype) for name, value in named.items()}
        if self.affine:
            named |= {"weight": 1 + torch.randn(c, device=device) / 3, "bias": torch.randn(c, device=device) / 3}
        if self.conv_bias:
            named["conv_bias"] = torch.randn(c, device=device)
        return named, torch.randn(b, c, self.past + t, h, w).to(device, dtype)

    def results(self, compute: Callable[..., Tensor], named: dict[str, Tensor], g: Tensor) -> dict[str, Tensor]:
        """Return the output and the gradients of all inputs."""
        leaves = {name: value.detach().requires_grad_() for name, value in named.items()}
        given = dict(leaves)
        if "modulation" in given:
            given["modulation"] = Modulation(given["modulation"], self.factors or (1, 1, 1), self.skip)  # type: ignore[assignment]
        y = compute(given.pop("x"), norm=self.norm, groups=self.groups, activation=self.activation, past=self.past, **given)
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        return {"y": y, **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), g.to(y.dtype)), strict=True))}

    def errors(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
        named, g = self.inputs(dtype, device)
        found = self.results(triton_norm_silu_pad, named, g)
        wanted = self.results(plain_norm_silu_pad, {name: value.double() for name, value in named.items()}, g)
        return {name: float((found[name].detach().double() - want.detach()).norm() / want.detach().norm()) for name, want in wanted.items()}


CASES = [
    Case("group", 128, 32, (1, 2, 3, 5), past=2, affine=True, conv_bias=True),
    Case("group", 256, 4, (1, 3, 4, 4), past=2, before=True, factors=(2, 2, 4), skip=1, conv_bias=True, activation=False),
    Case("group", 512, 8, (2, 1, 3, 3)),
    Case("group", 30, 3, (2, 2, 9, 15), past=1, affine=True),
    Case("group", 36, 3, (1, 2, 4, 6), past=2, factors=(1, 2, 3)),
    Case("layer", 128, 32, (1, 2, 5, 7), past=2, affine=True, conv_bias=True),
    Case("layer", 256, 32, (1, 3, 4, 4), past=2, before=True, factors=(2, 2, 4), skip=1, conv_bias=True, activation=False),
    Case("layer", 512, 32, (1, 1, 3, 3), affine=True),
    Case("layer", 30, 3, (2, 2, 9, 15), past=2, affine=True, before=True),
    Case("layer", 33, 3, (1, 2, 4, 6), factors=(1, 2, 3)),
]


def check_case(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    errors = case.errors(dtype, device)
    print(case, dtype, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < TOLERANCE[dtype], (case, dtype, errors)


def check_large_mean() -> None:
    """Sums of squares of such values, without a pivot, would be wrong in the second digit."""
    errors = Case("group", 32, 2, (1, 1, 8, 8), mean=1000.0, conv_bias=True).errors(torch.float32)
    assert errors["y"] < 1e-4, errors


def check_operator() -> None:
    """PyTorch's own check: the schema, the fake tensors that `torch.compile` traces with, and the registered gradient."""
    case = Case("group", 8, 2, (1, 2, 2, 2), past=1, affine=True, conv_bias=True)
    named, g = case.inputs(torch.float32, "cpu")
    x, *vectors = (value.requires_grad_() for value in named.values())
    settings = (2, 1e-6, [1, 1, 1, 0], True, 1)
    torch.library.opcheck(forward_op, (x, *vectors, None, None, *settings, torch.float16))
    statistics = forward_op(x, *vectors, None, None, *settings, torch.float32)[1].detach()
    inputs = [value.detach() for value in (x, *vectors)]
    torch.library.opcheck(backward_op, (g, inputs[0], statistics, *inputs[1:], None, *settings, True))


def check_saved_tensors() -> None:
    """The backward pass keeps x, the statistics and the vectors: nothing else of the size of x."""
    named, _ = (case := CASES[0]).inputs(torch.float16, "cpu")
    leaves = {name: value.requires_grad_() for name, value in named.items()}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        triton_norm_silu_pad(leaves.pop("x"), norm=case.norm, groups=case.groups, past=case.past, **leaves)
    sizes = sorted(value.numel() for value in saved)
    assert sizes == [128, 128, 128, 2 * 32 * 2, named["x"].numel()], sizes


def check_second_derivative_is_refused() -> None:
    x = torch.randn(1, 8, 1, 2, 2, requires_grad=True)
    (first,) = torch.autograd.grad(triton_norm_silu_pad(x, norm="layer").square().sum(), x, create_graph=True)
    try:
        first.sum().backward()
    except RuntimeError as refused:
        assert "no second derivative" in str(refused), refused
    else:
        raise AssertionError("a second derivative was computed")


if __name__ == "__main__":
    from walt_pl.blocks import norm_silu_pad_triton

    norm_silu_pad_triton.PROGRAMS = 4  # so that a slab of these small frames has several blocks
    for case in CASES:
        for dtype in (torch.float32, torch.float16):
            check_case(case, dtype)
    check_large_mean()
    check_operator()
    check_saved_tensors()
    check_second_derivative_is_refused()
