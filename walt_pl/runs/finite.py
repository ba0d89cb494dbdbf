"""Values that are nan or infinite: in weights, and in the plain entries of a card."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class NonFiniteError(ValueError):
    """Weights or entries of a card that are nan or infinite; the message names the first and says what to type."""


def count_non_finite(tensors: Sequence[Tensor]) -> list[int]:
    """Return how many values of each tensor are nan or infinite."""
    return torch.stack([(~torch.isfinite(tensor)).sum() for tensor in tensors]).tolist() if tensors else []


def describe_non_finite(names: Sequence[str], counts: Sequence[int], sizes: Sequence[int]) -> str | None:
    """Return the first tensor that is not finite, and how many values of all are not; None where every value is finite.

    Args:
        names: of the tensors.
        counts: values of each that are nan or infinite.
        sizes: values of each.
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
    """Return what is not finite in whole weights by name, as `describe_non_finite` does."""
    tensors = list(weights.values())
    return describe_non_finite(list(weights), count_non_finite(tensors), [tensor.numel() for tensor in tensors])


def non_finite_entry(entries: Any, path: str = "") -> str | None:
    """Return the first number of nested plain values that is not finite, by its path ("latents.std.2 is nan"); None where all are."""
    if isinstance(entries, float):
        return None if math.isfinite(entries) else f"{path} is {entries}"
    if isinstance(entries, Mapping):
        pairs = list(entries.items())
    else:
        pairs = list(enumerate(entries)) if isinstance(entries, (list, tuple)) else []
    found = (non_finite_entry(value, f"{path}.{key}" if path else str(key)) for key, value in pairs)
    return next((one for one in found if one), None)
