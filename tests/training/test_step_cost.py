"""Outputs of operations on meta tensors that are made without running the operation again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from walt_pl.training import step_cost
from walt_pl.training.step_cost import cost_of

aten = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cost, "_KNOWN_OUTPUTS", {})


def described(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.shape, out.stride(), out.dtype
    return type(out), [None if one is None else described(one) for one in out]


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (aten.addmm.default, lambda: (empty(5), empty(3, 4), empty(4, 5))),
        (aten.native_layer_norm.default, lambda: (empty(2, 3, 4), [4], None, None, 1e-6)),
        (aten.add.Tensor, lambda: (empty(2, 1, dtype=torch.bfloat16), empty(3))),
        (aten.clone.default, lambda: (empty(4, 3).t(),)),
        (aten.convolution_backward.default, lambda: _convolution_backward()),
    ],
)
def test_step_cost_known_outputs_are_those_of_the_operation(operation: Any, arguments: Callable[[], tuple[Any, ...]]) -> None:
    first, again = (step_cost._run(operation, arguments(), {}) for _ in range(2))
    assert described(first) == described(again) == described(operation(*arguments()))
    assert [known is not None for known in step_cost._KNOWN_OUTPUTS.values()] == [True]


def _convolution_backward() -> tuple[Any, ...]:
    x, weight = empty(1, 2, 5, 5), empty(3, 2, 3, 3)
    return empty(1, 3, 3, 3), x, weight, [3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]


@pytest.mark.parametrize("operation", [aten.view.default, aten._unsafe_view.default])
def test_step_cost_views_keep_the_storage_of_their_input(operation: Any) -> None:
    for _ in range(2):
        x = empty(2, 3)
        assert step_cost._run(operation, (x, [6]), {}).untyped_storage()._cdata == x.untyped_storage()._cdata


def test_step_cost_numbers_of_another_type_are_other_inputs() -> None:
    x = empty(2, dtype=torch.int64)
    found = [step_cost._run(aten.add.Scalar, (x, number), {}).dtype for number in (1, 1.0, True) for _ in range(2)]
    assert found == [torch.int64] * 2 + [torch.float32] * 2 + [torch.int64] * 2


@torch.library.custom_op("walt_test::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("this operation exists on the meta device alone")


@norm.register_fake
def _(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)


def save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])


norm.register_autograd(lambda ctx, g, _: (torch.empty_like(g), g.new_empty(8, dtype=torch.float32)), setup_context=save)


def test_step_cost_follows_custom_operations_under_autocast() -> None:
    """A fused norm keeps its input in bfloat16 and its float32 statistics; its output lives as long as its readers."""
    with torch.device("meta"):
        first, weight, second = nn.Linear(8, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 8)
    module = nn.ParameterDict({"weight": weight})

    def step() -> Tensor:
        hidden, _ = norm(first(torch.empty(100, 8, dtype=torch.bfloat16)), weight)
        assert hidden.dtype == torch.bfloat16
        out: Tensor = second(hidden).sum()
        return out

    activations, statistics, weights, loss = 3 * 2 * 100 * 8, 4 * 100, 2 * 8 * 8, 2
    kept = cost_of(step, [first, second, module], torch.bfloat16).kept
    assert kept == activations + statistics + weights + loss, "input of each product, input of the norm; the second matrix in bfloat16"
