"""Find values that are nan or infinite, in weights and in the plain entries of a card."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class NonFiniteError(ValueError):
    """Weights or entries of a card are nan or infinite. The message names the first one and says what to type."""


def count_non_finite(tensors: Sequence[Tensor]) -> list[int]:
    """Return the number of nan or infinite values of each tensor."""
    return torch.stack([(~torch.isfinite(tensor)).sum() for tensor in tensors]).tolist() if tensors else []


def describe_non_finite(names: Sequence[str], counts: Sequence[int], sizes: Sequence[int]) -> str | None:
    """Describe the first tensor with nan or infinite values, and the total over all tensors.

    Args:
        names: names of the tensors.
        counts: number of nan or infinite values of each tensor.
        sizes: number of values of each tensor.

    Returns:
        The description; None if every value is finite.
    """
    if not any(counts):
        return None
    name, count, size = next(found for found in zip(names, counts, sizes, strict=True) if found[1])
    tensors = sum(count > 0 for count in counts)
    return (
        f"{count:,} of {size:,} values of {name} are nan or infinite ({sum(counts):,} of {sum(sizes):,} values in {tensors:,} of "
        f"{len(names):,} tensors)"
    )


def non_finite_weights(weights: Mapping[str, Tensor]) -> str | None:
    """Describe the nan and infinite values of gathered weights by name, as `describe_non_finite` does."""
    tensors = list(weights.values())
    # A finite sum has finite terms. It takes a tenth of the time of isfinite. An overflow of finite terms is told by the count.
    if all(math.isfinite(tensor.sum().item()) for tensor in tensors):
        return None
    return describe_non_finite(list(weights), count_non_finite(tensors), [tensor.numel() for tensor in tensors])


def non_finite_entry(entries: Any, path: str = "") -> str | None:
    """Return the first number of nested plain values that is not finite, with its path.

    Args:
        entries: a number, mapping or sequence, nested to any depth.
        path: path of `entries`, put before the keys.

    Returns:
        Text such as "latents.std.2 is nan"; None if all numbers are finite.
    """
    if isinstance(entries, float):
        return None if math.isfinite(entries) else f"{path} is {entries}"
    if isinstance(entries, Mapping):
        pairs = list(entries.items())
    else:
        pairs = list(enumerate(entries)) if isinstance(entries, (list, tuple)) else []
    found = (non_finite_entry(value, f"{path}.{key}" if path else str(key)) for key, value in pairs)
    return next((one for one in found if one), None)
