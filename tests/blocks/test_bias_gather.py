"""The table of relative positions: its bias, and a gradient that equals autograd's in a fixed order."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from walt_pl.blocks.attention import RelativePositionBias, Window
from walt_pl.blocks.bias_gather import gather_bias, sum_offsets

WINDOWS: list[Window] = [(1, 4, 6), (3, 2, 3), (2, 1, 1), (1, 1, 1), (5, 8, 8)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parts(window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Return a table with a gradient, the index, and a gradient of the bias."""
    module = RelativePositionBias(window, num_heads=2)
    table = draw(*module.table.shape).requires_grad_()
    return table, module.index, draw(2, *module.index.shape, seed=1)


@pytest.mark.parametrize("window", WINDOWS)
def test_gather_bias_equals_the_index_and_its_gradient_autograds(window: Window) -> None:
    table, index, given = parts(window)
    bias = gather_bias(table, index, list(window))
    assert torch.equal(bias, table[:, index])
    (got,) = torch.autograd.grad(bias, table, given)
    exact = table.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(exact[:, index], exact, given.double())
    assert got.dtype == torch.float32
    # Sums of at most 320 numbers; seen: 7e-8.
    assert (got - want).norm() <= 1e-6 * want.norm()


def test_gather_bias_gradient_of_bfloat16_is_summed_in_float32() -> None:
    window: Window = (5, 8, 8)
    _, index, given = parts(window)
    got = sum_offsets(given.bfloat16(), list(window))
    want = torch.zeros(2, 9 * 15 * 15, dtype=torch.float64).index_add_(1, index.flatten(), given.bfloat16().double().flatten(1))
    assert (got - want).norm() <= 1e-6 * want.norm()


def test_gather_bias_gradient_repeats_its_bits() -> None:
    table, index, given = parts((5, 8, 8))
    first, second = (torch.autograd.grad(gather_bias(table, index, [5, 8, 8]), table, given)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("window", [(1, 4, 6), (3, 2, 3)])
def test_gather_bias_is_one_operator_for_the_compiler(window: Window) -> None:
    table, index, _ = parts(window)
    opcheck(gather_bias, (table, index, list(window)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="atomic additions show on a CUDA GPU only, and there is none")
def test_gather_bias_gradient_repeats_its_bits_on_a_gpu_compiled_too() -> None:
    def gradient(table: Tensor, given: Tensor) -> Tensor:
        return torch.autograd.grad(gather_bias(table, index, [1, 32, 32]), table, given)[0]

    table, index, given = (x.detach().cuda() for x in parts((1, 32, 32)))
    table.requires_grad_()
    runs = [gradient(table, given) for _ in range(5)]
    compiled = torch.compile(lambda table: gather_bias(table, index, [1, 32, 32]) * 1.0)
    runs += [torch.autograd.grad(compiled(table), table, given)[0] for _ in range(5)]
    assert all(torch.equal(runs[0], run) for run in runs)
