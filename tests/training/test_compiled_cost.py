"""Bytes of a compiled layer whose kept tensors are known."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from walt_pl.training.compiled_cost import trace_layer


class TwoReaders(nn.Module):
    """A tensor that two products keep, in two shapes, between elementwise operations that a compiler fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x * 2 + 1)
        return self.second(h).exp() + h @ h.mT


def test_trace_layer_counts_each_storage_once_and_no_fused_operation() -> None:
    with torch.device("meta"):
        layer, x = TwoReaders(), torch.empty(5, 8, 8, requires_grad=True)
    memory, tensor = trace_layer(layer, (x,), nullcontext), 4 * 5 * 8 * 8
    assert memory.kept in (3 * tensor, 2 * tensor), "h and the second product, and x * 2 + 1 where it is not computed again"
    assert memory.kept + tensor <= memory.forward <= memory.kept + 2 * tensor, "the output, and the product of h with itself"
    assert memory.kept + tensor <= memory.backward <= memory.kept + 6 * tensor
